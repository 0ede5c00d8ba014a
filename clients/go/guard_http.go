package tumbler

import (
	"context"
	"encoding/json"
	"net/http"
)

// HTTPOption configures a Middleware. A VerifyOption is one too, and applies to every request.
type HTTPOption interface{ applyHTTP(*httpGuard) }

type httpGuard struct {
	guard
	scopes   func(*http.Request) ([]string, bool)
	clientIP func(*http.Request) string
	exempt   map[string]bool
}

type httpOption func(*httpGuard)

func (o httpOption) applyHTTP(g *httpGuard) { o(g) }

func (o VerifyOption) applyHTTP(g *httpGuard) { g.fixed = append(g.fixed, o) }

// ScopesByRequest demands the scopes that a function returns for the request, in addition to the demands on every
// request. A request that the function does not know is refused. A known request without scopes accepts any valid key.
func ScopesByRequest(scopes func(*http.Request) (required []string, known bool)) HTTPOption {
	return httpOption(func(g *httpGuard) { g.scopes = scopes })
}

// ClientIPByRequest sets a function that returns the client's address for a request. The default is the connection's
// peer, which behind a proxy is the proxy. Read a header only if your own proxy sets it.
func ClientIPByRequest(clientIP func(*http.Request) string) HTTPOption {
	return httpOption(func(g *httpGuard) { g.clientIP = clientIP })
}

// ExemptPaths admits requests for exactly these paths without a key.
func ExemptPaths(paths ...string) HTTPOption {
	return httpOption(func(g *httpGuard) {
		for _, path := range paths {
			g.exempt[path] = true
		}
	})
}

// Middleware returns a middleware that admits only requests with a valid key. The handler gets the verdict from
// FromContext. Without options any valid key is accepted.
//
// The guard takes the key from authorization: Bearer or from x-api-key, and refuses a request with more than one of
// these headers. It answers with JSON: 401 if there is no valid key, 403 if the key does not allow the request, 503 if
// keys cannot be verified, and 500 if a demand has the wrong form. The reason is logged, and not sent to the caller.
//
// The guard breaks off an answer that streams when its key stops being valid (EndStreams). The request's context ends,
// the handler's writes fail, and the caller sees a closed connection or a reset stream. The guard waits neither for the
// handler nor for a caller who does not read.
//
// A connection that the handler has taken over with Hijack (for a WebSocket, for example) is closed when its key stops
// being valid, even if the handler has returned. Close the net.Conn that Hijack returns after use: until then the guard
// holds the connection and its key, and keeps verifying the key, even if nothing uses the connection any more. The
// net.Conn wraps the server's, so it is no *net.TCPConn or *tls.Conn; it has CloseWrite if the server's has it.
//
// Middleware outside the guard that wraps the http.ResponseWriter needs an Unwrap method (see
// http.ResponseController). Without it, a write that waits for such a caller returns only when the caller reads or
// disconnects; nothing is written after it.
func Middleware(v *Verifier, options ...HTTPOption) func(http.Handler) http.Handler {
	g := &httpGuard{
		guard:    guard{verifier: v},
		scopes:   func(*http.Request) ([]string, bool) { return nil, true },
		clientIP: func(r *http.Request) string { return address(r.RemoteAddr) },
		exempt:   make(map[string]bool),
	}
	for _, option := range options {
		option.applyHTTP(g)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, next) })
	}
}

func (g *httpGuard) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if g.exempt[r.URL.Path] {
		next.ServeHTTP(w, r)
		return
	}
	scopes, known := g.scopes(r)
	authorization, apiKey := r.Header.Values("Authorization"), r.Header.Values("X-Api-Key")
	admitted, refused := g.check(r.Context(), authorization, apiKey, g.clientIP(r), scopes, known)
	if refused != nil {
		refuse(w, refused)
		return
	}
	ctx, cancel := context.WithCancelCause(admitted.context(r.Context()))
	defer cancel(nil)
	answer := &heldResponse{
		hold:   func(end func(*refusal)) func() { return g.hold(ctx, admitted, end) },
		cancel: cancel,
		writer: w,
	}
	defer answer.finish()
	next.ServeHTTP(answer.wrap(), r.WithContext(ctx))
}

func refuse(w http.ResponseWriter, refused *refusal) {
	header := w.Header()
	header.Set("Content-Type", "application/json")
	switch refused {
	case keyRequired:
		header.Set("WWW-Authenticate", "Bearer")
	case undecided:
		header.Set("Retry-After", "1")
	}
	w.WriteHeader(refused.http)
	// It fails only if the caller has disconnected.
	_ = json.NewEncoder(w).Encode(map[string]string{"error": refused.text})
}
