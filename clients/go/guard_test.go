package tumbler

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// outcomes lists what the server may answer, and what the guard answers to the caller.
var outcomes = []struct {
	name string
	code tumblerv1.VerifyCode
	fail codes.Code
	http int
	grpc codes.Code
	text string
}{
	{"MALFORMED", tumblerv1.VerifyCode_VERIFY_CODE_MALFORMED, codes.OK, 401, codes.Unauthenticated, "a valid API key is required"},
	{"NOT_FOUND", tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND, codes.OK, 401, codes.Unauthenticated, "a valid API key is required"},
	{"REVOKED", tumblerv1.VerifyCode_VERIFY_CODE_REVOKED, codes.OK, 401, codes.Unauthenticated, "a valid API key is required"},
	{"SUPERSEDED", tumblerv1.VerifyCode_VERIFY_CODE_SUPERSEDED, codes.OK, 401, codes.Unauthenticated, "a valid API key is required"},
	{"INACTIVE", tumblerv1.VerifyCode_VERIFY_CODE_INACTIVE, codes.OK, 401, codes.Unauthenticated, "a valid API key is required"},
	{"EXPIRED", tumblerv1.VerifyCode_VERIFY_CODE_EXPIRED, codes.OK, 401, codes.Unauthenticated, "a valid API key is required"},
	{"ENVIRONMENT_MISMATCH", tumblerv1.VerifyCode_VERIFY_CODE_ENVIRONMENT_MISMATCH, codes.OK, 403, codes.PermissionDenied, "this API key does not allow that"},
	{"IP_NOT_ALLOWED", tumblerv1.VerifyCode_VERIFY_CODE_IP_NOT_ALLOWED, codes.OK, 403, codes.PermissionDenied, "this API key does not allow that"},
	{"INSUFFICIENT_SCOPE", tumblerv1.VerifyCode_VERIFY_CODE_INSUFFICIENT_SCOPE, codes.OK, 403, codes.PermissionDenied, "this API key does not allow that"},
	{"a code of a later server", 77, codes.OK, 401, codes.Unauthenticated, "a valid API key is required"},
	{"unavailable", 0, codes.ResourceExhausted, 503, codes.Unavailable, "API keys cannot be verified at the moment"},
	{"not allowed", 0, codes.Unauthenticated, 503, codes.Unavailable, "API keys cannot be verified at the moment"},
	{"invalid request", 0, codes.InvalidArgument, 500, codes.Internal, "API keys cannot be verified at the moment"},
}

// say makes each Verify return this code, or fail.
func (s *fakeServer) say(code tumblerv1.VerifyCode, fail codes.Code) {
	s.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		answer := goodAnswer(request)
		setCode(answer, code)
		return answer, status.Error(fail, "no")
	})
}

// whoami is a handler that answers with the owner of the caller's key.
func whoami(w http.ResponseWriter, r *http.Request) {
	if found, ok := FromContext(r.Context()); ok {
		w.Write([]byte(found.OwnerID))
	}
}

func get(handler http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	request := httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, http.NoBody)
	request.RemoteAddr = "192.0.2.7:1234"
	for place := 0; place < len(header); place += 2 {
		request.Header.Add(header[place], header[place+1])
	}
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder
}

func TestMiddlewareTellsTheHandlerWhoCalls(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	handler := Middleware(w.verifier, readOrders, Environment("live"))(http.HandlerFunc(whoami))
	for name, header := range map[string][]string{
		"a bearer":                      {"Authorization", "Bearer " + testKey(1, 'a')},
		"a bearer, however it is spelt": {"Authorization", "bEARER   " + testKey(1, 'a') + " "},
		"x-api-key":                     {"X-API-Key", testKey(1, 'a')},
	} {
		t.Run(name, func(t *testing.T) {
			got := get(handler, "/", header...)
			if got.Code != 200 || got.Body.String() != "an owner" {
				t.Errorf("got %d %s", got.Code, got.Body)
			}
			request := w.server.lastRequest()
			if request.GetKey() != testKey(1, 'a') || request.GetRequiredScopes()[0] != "orders:read" ||
				request.GetEnvironmentId() != "live" || request.GetClientIp() != "192.0.2.7" {
				t.Errorf("asked for %v", request)
			}
		})
	}
}

func TestMiddlewareTellsTheCallerNoMoreThanItMust(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	handler := Middleware(w.verifier, readOrders, Environment("live"))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the handler was called")
	}))
	for _, c := range outcomes {
		t.Run(c.name, func(t *testing.T) {
			w.server.say(c.code, c.fail)
			got := get(handler, "/", "Authorization", "Bearer "+testKey(1, 'a'))
			var body map[string]string
			if err := json.Unmarshal(got.Body.Bytes(), &body); err != nil {
				t.Fatal(err)
			}
			if got.Code != c.http || body["error"] != c.text || len(body) != 1 {
				t.Errorf("got %d %v", got.Code, body)
			}
			for name, want := range map[string]string{
				"Content-Type":     "application/json",
				"WWW-Authenticate": map[int]string{401: "Bearer"}[c.http],
				"Retry-After":      map[int]string{503: "1"}[c.http],
			} {
				if value := got.Header().Get(name); value != want {
					t.Errorf("%s: %s", name, value)
				}
			}
		})
	}
	if log := w.logs.String(); !strings.Contains(log, "INSUFFICIENT_SCOPE") || strings.Contains(log, testKey(1, 'a')) {
		t.Errorf("logged: %s", log)
	}
}

func TestMiddlewareRefusesWhoBringsNoKey(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	handler := Middleware(w.verifier)(http.HandlerFunc(whoami))
	for _, header := range [][]string{nil, {"Authorization", "Basic " + testKey(1, 'a')}, {"Authorization", "Bearer "}, {"Authorization", testKey(1, 'a')}} {
		if got := get(handler, "/", header...); got.Code != 401 {
			t.Errorf("%v: %d", header, got.Code)
		}
	}
	if singles, _ := w.server.calls(); singles != 0 {
		t.Errorf("%d calls", singles)
	}
}

func TestMiddlewareDemandsWhatItsFunctionsSay(t *testing.T) {
	w, _ := listening(t)
	handler := Middleware(w.verifier,
		ExemptPaths("/healthz"),
		ClientIPByRequest(func(*http.Request) string { return "203.0.113.9" }),
		ScopesByRequest(func(r *http.Request) ([]string, bool) {
			scopes, known := map[string][]string{"/orders": {"orders:read"}, "/admin": {"admin"}, "/me": nil}[r.URL.Path]
			return scopes, known
		}),
	)(http.HandlerFunc(whoami))
	key := []string{"X-API-Key", testKey(1, 'a')}
	for _, c := range []struct {
		path string
		want int
	}{
		{"/orders", 200}, // first, so that the others are decided from the cache: the fake server accepts everything
		{"/admin", 403},
		{"/me", 200},
		{"/forgotten", 403},
		{"/healthz/x", 403},
	} {
		if got := get(handler, c.path, key...); got.Code != c.want {
			t.Errorf("%s: %d", c.path, got.Code)
		}
	}
	if got := get(handler, "/forgotten"); got.Code != 401 {
		t.Errorf("no scopes are listed, and there is no key: %d", got.Code)
	}
	if got := get(handler, "/healthz"); got.Code != 200 || got.Body.String() != "" {
		t.Errorf("without a key: %d %s", got.Code, got.Body)
	}
	if got := w.server.lastRequest().GetClientIp(); got != "203.0.113.9" {
		t.Errorf("the address: %s", got)
	}
}

func TestThePeersAddressIsSentOnlyWhereItMeansTheSameElsewhere(t *testing.T) {
	for peer, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7", "[2001:db8::1]:1": "2001:db8::1", "[fe80::1%eth0]:1": "", "@": "", "/run/t.sock": "", "": "",
	} {
		if got := address(peer); got != want {
			t.Errorf("%q: %q", peer, got)
		}
	}
}

// guarded starts a gRPC service behind the interceptors, and returns a client for it.
func guarded(t *testing.T, w *world, seen func(context.Context), options ...GRPCOption) healthv1.HealthClient {
	t.Helper()
	watch := func(ctx context.Context) { seen(ctx) }
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(
			UnaryServerInterceptor(w.verifier, options...),
			func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				watch(ctx)
				return handler(ctx, request)
			},
		),
		grpc.ChainStreamInterceptor(
			StreamServerInterceptor(w.verifier, options...),
			func(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				watch(stream.Context())
				return handler(server, stream)
			},
		),
	)
	healthv1.RegisterHealthServer(server, health.NewServer())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthv1.NewHealthClient(conn)
}

// both calls a unary and a streaming method.
func both(client healthv1.HealthClient, header ...string) (unary, stream error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), header...), patience)
	defer cancel()
	_, unary = client.Check(ctx, &healthv1.HealthCheckRequest{})
	watching, stream := client.Watch(ctx, &healthv1.HealthCheckRequest{})
	if stream == nil {
		_, stream = watching.Recv()
	}
	return unary, stream
}

func TestInterceptorsTellTheHandlerWhoCalls(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	var owners []string
	client := guarded(t, w, func(ctx context.Context) {
		found, ok := FromContext(ctx)
		owners = append(owners, found.OwnerID)
		if !ok {
			t.Error("nobody")
		}
	}, readOrders)
	for _, header := range [][]string{{"authorization", "Bearer " + testKey(1, 'a')}, {"x-api-key", testKey(1, 'a')}} {
		if unary, stream := both(client, header...); unary != nil || stream != nil {
			t.Fatal(unary, stream)
		}
	}
	if !slices.Equal(owners, slices.Repeat([]string{"an owner"}, 4)) {
		t.Errorf("got %q", owners)
	}
	request := w.server.lastRequest()
	if request.GetClientIp() != "127.0.0.1" || request.GetRequiredScopes()[0] != "orders:read" {
		t.Errorf("asked for %v", request)
	}
}

func TestInterceptorsTellTheCallerNoMoreThanTheyMust(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	client := guarded(t, w, func(context.Context) { t.Error("the handler was called") }, readOrders, Environment("live"))
	check := func(t *testing.T, code codes.Code, text string, header ...string) {
		t.Helper()
		unary, stream := both(client, header...)
		for _, err := range []error{unary, stream} {
			if got := status.Convert(err); got.Code() != code || got.Message() != text || len(got.Details()) > 0 {
				t.Errorf("got %v", err)
			}
		}
	}
	for _, c := range outcomes {
		t.Run(c.name, func(t *testing.T) {
			w.server.say(c.code, c.fail)
			check(t, c.grpc, c.text, "authorization", "Bearer "+testKey(1, 'a'))
		})
	}
	t.Run("no key", func(t *testing.T) { check(t, codes.Unauthenticated, "a valid API key is required") })
}

func TestInterceptorsDemandWhatTheirFunctionsSay(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	key := []string{"x-api-key", testKey(1, 'a')}
	scopes := func(method string) ([]string, bool) {
		return []string{"health:check"}, method == healthv1.Health_Check_FullMethodName
	}
	elsewhere := ClientIPByContext(func(context.Context) string { return "203.0.113.9" })
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) { a.Scopes = []string{"health:check"} })

	client := guarded(t, w, func(context.Context) {}, ScopesByMethod(scopes), elsewhere)
	if unary, stream := both(client, key...); unary != nil || status.Code(stream) != codes.PermissionDenied {
		t.Error(unary, stream)
	}
	if got := w.server.lastRequest(); got.GetClientIp() != "203.0.113.9" || got.GetRequiredScopes()[0] != "health:check" {
		t.Errorf("asked for %v", got)
	}

	client = guarded(t, w, func(context.Context) {}, ExemptMethods(healthv1.Health_Watch_FullMethodName))
	if unary, stream := both(client); status.Code(unary) != codes.Unauthenticated || stream != nil {
		t.Error(unary, stream)
	}
}

func TestAHandlerWithoutAGuardFindsNobody(t *testing.T) {
	if found, ok := FromContext(context.Background()); ok || found != nil {
		t.Errorf("got %+v", found)
	}
}

func TestAGuardOfAClosedVerifierLetsNobodyIn(t *testing.T) {
	w, _ := listening(t)
	w.verify(testKey(1, 'a'))
	w.verifier.Close()
	if got := get(Middleware(w.verifier)(http.HandlerFunc(whoami)), "/", "X-API-Key", testKey(1, 'a')); got.Code != 503 {
		t.Errorf("got %d", got.Code)
	}
	if _, err := w.verifier.Verify(context.Background(), ""); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
