package tumbler

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// credentialVector is a case of tests/vectors/credentials.json.
type credentialVector struct {
	Name       string      `json:"name"`
	Headers    [][2]string `json:"headers"`
	Credential string      `json:"credential"`
	Refused    string      `json:"refused"`
}

func credentialVectors(t *testing.T) []credentialVector {
	t.Helper()
	content, err := os.ReadFile("../../tests/vectors/credentials.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []credentialVector `json:"vectors"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 30 {
		t.Fatalf("only %d vectors", len(file.Vectors))
	}
	return file.Vectors
}

// with returns the headers with key in place of "good", as alternating names and values.
func (v *credentialVector) with(key string) (headers []string) {
	for _, header := range v.Headers {
		headers = append(headers, header[0], strings.ReplaceAll(header[1], "good", key))
	}
	return headers
}

func TestEachVectorHasItsCredentialOrTheReasonWhyNot(t *testing.T) {
	reasons := map[string]error{"": nil, "missing": errMissingCredential, "ambiguous": errAmbiguousCredential}
	for _, v := range credentialVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			header := make(http.Header)
			for _, one := range v.Headers {
				header.Add(one[0], one[1])
			}
			key, err := credential(header.Values("Authorization"), header.Values("X-Api-Key"))
			if key != v.Credential || !errors.Is(err, reasons[v.Refused]) {
				t.Errorf("got %q, %v", key, err)
			}
		})
	}
}

func TestTheMiddlewareTakesOneCredential(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	handler := Middleware(w.verifier)(http.HandlerFunc(whoami))
	for _, v := range credentialVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			want := http.StatusUnauthorized
			if v.Credential == "good" { // the others are not keys
				want = http.StatusOK
			}
			if got := get(handler, "/", v.with(testKey(1, 'a'))...); got.Code != want {
				t.Errorf("got %d %s", got.Code, got.Body)
			}
		})
	}
	if log := w.logs.String(); !strings.Contains(log, "more than one credential") || strings.Contains(log, testKey(1, 'a')) {
		t.Errorf("logged: %s", log)
	}
}

func TestTheInterceptorsTakeOneCredential(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	client := guarded(t, w, func(context.Context) {})
	for _, v := range credentialVectors(t) {
		headers := v.with(testKey(1, 'a'))
		if strings.Contains(strings.Join(headers, ""), "\t") {
			continue // gRPC does not send tabs
		}
		t.Run(v.Name, func(t *testing.T) {
			want := codes.Unauthenticated
			if v.Credential == "good" {
				want = codes.OK
			}
			unary, stream := both(client, headers...)
			if status.Code(unary) != want || status.Code(stream) != want {
				t.Errorf("got %v, %v", unary, stream)
			}
		})
	}
}
