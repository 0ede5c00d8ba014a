package tumbler

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

func TestAnOptionThatBreaksARuleIsNamed(t *testing.T) {
	key, secure := WithAPIKey(ownKey), WithCredentials(credentials.NewTLS(nil))
	for name, c := range map[string]struct {
		target  string
		options []Option
		says    string
	}{
		"no target":                       {"", []Option{key}, "target"},
		"no key":                          {"localhost:1", nil, "WithAPIKey"},
		"a key with a line feed":          {"localhost:1", []Option{WithAPIKey(ownKey + "\n")}, "WithAPIKey"},
		"plaintext to elsewhere":          {"tumbler.example:1", []Option{key}, "WithInsecure"},
		"plaintext in disguise":           {"tumbler.example:1", []Option{key, WithCredentials(insecure.NewCredentials())}, "WithInsecure"},
		"both":                            {"localhost:1", []Option{key, secure, WithInsecure()}, "WithInsecure"},
		"a cache of less than nothing":    {"localhost:1", []Option{key, WithCacheSize(-1)}, "WithCacheSize"},
		"a room of less than nothing":     {"localhost:1", []Option{key, WithCacheBytes(-1)}, "WithCacheBytes"},
		"no staleness":                    {"localhost:1", []Option{key, WithMaxStaleness(0)}, "WithMaxStaleness"},
		"a short heartbeat":               {"localhost:1", []Option{key, WithHeartbeat(time.Second - 1)}, "WithHeartbeat"},
		"a long heartbeat":                {"localhost:1", []Option{key, WithHeartbeat(time.Hour + 1), WithMaxStaleness(3 * time.Hour)}, "WithHeartbeat"},
		"a heartbeat as long as the rest": {"localhost:1", []Option{key, WithMaxStaleness(5 * time.Second)}, "WithMaxStaleness"},
		"no time":                         {"localhost:1", []Option{key, WithTimeout(0)}, "WithTimeout"},
		"a fixed time beside the stream":  {"localhost:1", []Option{key, WithFixedTTL(time.Second)}, "WithoutWatch"},
		"a fixed time of nothing":         {"localhost:1", []Option{key, WithoutWatch(), WithFixedTTL(0)}, "WithFixedTTL"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := NewVerifier(c.target, c.options...)
			if err == nil {
				v.Close()
				t.Fatal("it was taken")
			}
			if !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), ownKey) {
				t.Errorf("it says: %v", err)
			}
		})
	}
}

func TestOptionsThatKeepTheRulesAreTaken(t *testing.T) {
	for name, options := range map[string][]Option{
		"TLS":                  {WithCredentials(credentials.NewTLS(nil))},
		"plaintext, as wanted": {WithInsecure()},
		"the longest":          {WithInsecure(), WithHeartbeat(time.Hour), WithMaxStaleness(time.Hour + 1)},
		"a fixed time":         {WithInsecure(), WithoutWatch(), WithFixedTTL(time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := NewVerifier("tumbler.invalid:1", append(options, WithAPIKey(ownKey), WithLogger(slog.New(slog.DiscardHandler)))...)
			if err != nil {
				t.Fatal(err)
			}
			v.Close()
		})
	}
}

func TestATargetMayListServers(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	address := w.listener.Addr().String()
	for _, target := range []string{"ipv4:" + address, "ipv4:" + address + ",127.0.0.1:1", "ipv4:127.0.0.1:1," + address} {
		v, err := NewVerifier(target, WithAPIKey(ownKey), WithoutWatch(), WithTimeout(patience))
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if found, err := v.Verify(context.Background(), testKey(1, 'a')); err != nil || !found.Valid {
				t.Errorf("%s: got %+v, %v", target, found, err)
			}
		}
		v.Close()
	}
}

func TestOnlyThisMachineIsLoopback(t *testing.T) {
	for target, want := range map[string]bool{
		"localhost:50051": true, "LocalHost:50051": true, "localhost": true, "127.0.0.1:50051": true, "127.9.9.9:1": true,
		"[::1]:50051": true, "::1": true, "dns:///localhost:1": true, "dns:127.0.0.1:1": true, "unix:/run/t.sock": true,
		"unix:///run/t.sock": true, "unix-abstract:t": true, "passthrough:///127.0.0.1:1": true,
		"ipv4:127.0.0.1:1,127.0.0.2:1": true, "ipv6:[::1]:1": true,
		"": false, "tumbler.example:1": false, "192.0.2.7:1": false, "0.0.0.0:1": false, "[::]:1": false,
		"[2001:db8::1]:1": false, "localhost.example:1": false, "127.0.0.1.example:1": false, "127.1:1": false,
		"dns://192.0.2.7/localhost:1": false, "ipv4:127.0.0.1:1,192.0.2.7:1": false, "xds:///localhost": false,
		"unixx:/run/t.sock": false, "passthrough://192.0.2.7/localhost": false,
	} {
		if got := isLoopback(target); got != want {
			t.Errorf("%q: %v", target, got)
		}
	}
}

func TestTheOwnKeyTravelsOverTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	defer web.Close()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	fake := &fakeServer{}
	fake.answerWith(func(*tumblerv1.VerifyResponse) {})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: web.TLS.Certificates})))
	tumblerv1.RegisterApiKeyServiceServer(server, fake)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	defer server.Stop()
	v, err := NewVerifier(listener.Addr().String(), WithAPIKey(ownKey), WithoutWatch(), WithTimeout(patience),
		WithCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if found, err := v.Verify(context.Background(), testKey(1, 'a')); err != nil || !found.Valid {
		t.Fatalf("got %+v, %v", found, err)
	}
	if got := fake.headers[0].Get("authorization"); len(got) != 1 || got[0] != "Bearer "+ownKey {
		t.Error("it did not bring its own key")
	}
}

func TestNoWayOfPrintingShowsAKey(t *testing.T) {
	w, _ := listening(t)
	presented := testKey(1, 'a')
	found := w.verify(presented)
	w.server.answer(func(*tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		return nil, status.Error(codes.Internal, "no")
	})
	_, failure := w.verifier.Verify(context.Background(), testKey(2, 'a'))
	asJSON, err := json.Marshal([]any{w.verifier, found})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewJSONHandler(w.logs, nil))
	log.Info("printed", "verifier", w.verifier, "found", found, "failure", failure)
	var text strings.Builder
	text.WriteString(string(asJSON) + w.logs.String() + failure.Error())
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		for _, shown := range []any{w.verifier, *found, WithAPIKey(ownKey), newBearer(ownKey, true), failure} {
			fmt.Fprintf(&text, verb, shown)
		}
	}
	for _, key := range []string{presented, testKey(2, 'a'), ownKey, fmt.Sprintf("%x", ownKey)} {
		if strings.Contains(text.String(), key[20:40]) {
			t.Errorf("a key shows in %s", text.String())
		}
	}
}

func TestNothingThatIsRememberedHoldsAKey(t *testing.T) {
	w, _ := listening(t)
	w.verify(testKey(1, 'a'))
	for _, element := range w.verifier.cache.entries {
		if text := fmt.Sprintf("%+v %+v", element.Value, element.Value.(*entry).record); strings.Contains(text, "aaaaaaaa") {
			t.Errorf("remembered: %s", text)
		}
	}
	if left := len(w.verifier.batcher.joinable) + len(w.verifier.batcher.queue); left != 0 {
		t.Errorf("%d calls are kept", left)
	}
}

func TestDigestsDependOnARandomKey(t *testing.T) {
	one, other := newDigester(), newDigester()
	key := testKey(1, 'a')
	a, again, b, c := one.digest(key), one.digest(key), other.digest(key), one.digest(testKey(1, 'b'))
	if !same(&a, &again) || same(&a, &b) || same(&a, &c) {
		t.Error("digests are the same where they must not be, or the other way round")
	}
}
