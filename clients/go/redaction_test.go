package tumbler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/wrapperspb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

func TestNoVectorShowsItsKey(t *testing.T) {
	content, err := os.ReadFile("../../tests/vectors/redaction.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name     string  `json:"name"`
			Text     string  `json:"text"`
			Redacted *string `json:"redacted"`
		} `json:"vectors"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 25 {
		t.Fatalf("only %d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			want := v.Text
			if v.Redacted != nil {
				want = *v.Redacted
			}
			for _, text := range []string{v.Text, want} {
				if got := redact(text); got != want {
					t.Errorf("%q became %q, not %q", text, got, want)
				}
			}
		})
	}
}

// quoting returns a status that quotes the Verifier's own key and some presented ones, in its text and in its details.
func quoting(t *testing.T, code codes.Code) error {
	t.Helper()
	texts := []string{"no: authorization=Bearer " + ownKey}
	for id := range 10 {
		texts = append(texts, testKey(id, 'a'))
	}
	said, err := status.New(code, strings.Join(texts, ", ")).WithDetails(
		protoadapt.MessageV1Of(wrapperspb.String("x-api-key: "+testKey(1, 'a'))),
		protoadapt.MessageV1Of(wrapperspb.String("to be kept")),
	)
	if err != nil {
		t.Fatal(err)
	}
	return said.Err()
}

// shown returns all that an error shows, with those that it wraps.
func shown(err error) string {
	all := []string{fmt.Sprintf("%v\n%+v\n%#v\n%q", err, err, err, err)}
	if said, ok := status.FromError(err); ok {
		all = append(all, fmt.Sprint(said, said.Details()))
	}
	switch wrapper := err.(type) { //nolint:errorlint // every error of the tree is looked at
	case interface{ Unwrap() error }:
		all = append(all, shown(wrapper.Unwrap()))
	case interface{ Unwrap() []error }:
		for _, one := range wrapper.Unwrap() {
			all = append(all, shown(one))
		}
	}
	return strings.Join(all, "\n")
}

func checkShown(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(text, "<key>") {
		t.Errorf("this does not say that there was a key: %s", text)
	}
	for _, secret := range []string{strings.Repeat("a", 20), strings.Repeat("k", 20)} {
		if strings.Contains(text, secret) {
			t.Errorf("this shows a secret: %s", text)
		}
	}
}

func TestNoKeyThatAServerQuotesIsShown(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.Unavailable:      ErrUnavailable,
		codes.Internal:         ErrUnavailable,
		codes.Unauthenticated:  ErrNotAllowed,
		codes.PermissionDenied: ErrNotAllowed,
		codes.InvalidArgument:  ErrInvalidRequest,
	} {
		refuse := func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
			return goodAnswer(request), quoting(t, code)
		}
		check := func(t *testing.T, w *world, err error) {
			t.Helper()
			if !errors.Is(err, want) || status.Code(err) != code {
				t.Errorf("got %v", err)
			}
			said, _ := status.FromError(err)
			if details := said.Details(); len(details) != 1 {
				t.Errorf("%d details", len(details))
			}
			checkShown(t, shown(err))
			if logged := w.logs.String(); strings.Contains(logged, "aaaaa") || strings.Contains(logged, "kkkkk") {
				t.Errorf("logged: %s", logged)
			}
		}
		t.Run(code.String()+" to Verify", func(t *testing.T) {
			w := newWorld(t, WithoutWatch())
			w.server.answer(refuse)
			_, err := w.verifier.Verify(context.Background(), testKey(1, 'a'))
			check(t, w, err)
		})
		t.Run(code.String()+" to BatchVerify", func(t *testing.T) {
			w := newWorld(t, WithoutWatch())
			release := w.occupy()
			results := []<-chan result{w.start(testKey(1, 'a')), w.start(testKey(2, 'a')), w.start(testKey(3, 'a'))}
			w.queued(len(results))
			w.server.answer(refuse)
			w.server.mu.Lock()
			w.server.refuse = func(*tumblerv1.BatchVerifyRequest) error { return quoting(t, code) }
			w.server.mu.Unlock()
			release()
			for _, one := range results {
				check(t, w, w.await(one).err)
			}
			if _, batches := w.server.calls(); batches == 0 {
				t.Error("there was no batch")
			}
		})
		t.Run(code.String()+" to Watch", func(t *testing.T) {
			w := newWorld(t)
			w.end(w.stream(), quoting(t, code))
			w.eventually("it is logged", func() bool { return strings.Contains(w.logs.String(), "the stream broke") })
			checkShown(t, w.logs.String())
		})
		t.Run(code.String()+" behind a guard", func(t *testing.T) {
			w := newWorld(t, WithoutWatch())
			w.server.answer(refuse)
			got := get(Middleware(w.verifier)(nil), "/", "X-API-Key", testKey(1, 'a'))
			if body := got.Body.String(); got.Code < 500 || strings.Contains(body, "aaaaa") || strings.Contains(body, "key>") {
				t.Errorf("got %d %s", got.Code, body)
			}
			checkShown(t, w.logs.String())
		})
	}
}

func TestAnErrorThatShowsNoKeyStaysAsItIs(t *testing.T) {
	for _, err := range []error{
		status.Error(codes.Internal, "no key"),
		context.DeadlineExceeded,
		fmt.Errorf("behind another: %w", context.Canceled),
	} {
		if redactError(err) != err { //nolint:errorlint // the same error
			t.Errorf("%v became another", err)
		}
	}
}

func TestTheTimeForATextGrowsWithItsLength(t *testing.T) {
	began := time.Now()
	for _, part := range []string{"a", "a_", "0123456789abcdef_", "aaaaaaaaaaaaaaaa_bbbbbbbbbbbbbbb_"} {
		redact(strings.Repeat(part, 300_000/len(part)))
	}
	if taken := time.Since(began); taken > patience {
		t.Errorf("it took %v", taken)
	}
}
