package tumbler

import (
	"context"
	"encoding/json"
	"net/http"
)

// HTTPOption changes what a Middleware demands. A VerifyOption is one too, and holds for every request.
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

// ScopesByRequest demands what a function says of the request, beside what is demanded of all. A request that it does
// not know is refused; one for which it knows of no scopes passes with any valid key.
func ScopesByRequest(scopes func(*http.Request) (required []string, known bool)) HTTPOption {
	return httpOption(func(g *httpGuard) { g.scopes = scopes })
}

// ClientIPByRequest sends what a function makes of the request as the address that the key came from. Without it that
// is the connection's peer, which behind a proxy is the proxy. Read a header only if your own proxy sets it.
func ClientIPByRequest(clientIP func(*http.Request) string) HTTPOption {
	return httpOption(func(g *httpGuard) { g.clientIP = clientIP })
}

// ExemptPaths lets requests for exactly these paths pass without a key.
func ExemptPaths(paths ...string) HTTPOption {
	return httpOption(func(g *httpGuard) {
		for _, path := range paths {
			g.exempt[path] = true
		}
	})
}

// Middleware returns what lets only requests with a valid key through to a handler, which finds the verdict by
// FromContext. Without options any valid key will do.
//
// The key is that of authorization: Bearer or of x-api-key; with more than one of these headers there is none. What is
// not let through is answered with JSON: 401 without a valid key, 403 where the key is not good for this, 503 where keys
// cannot be verified, and 500 where what is demanded is not of the right form. The reason is logged and not told.
//
// An answer that streams is broken off when its key stops being valid (EndStreams): the request's context ends, what the
// handler writes fails with an error, and the caller sees a connection that is closed or a stream that is reset. A
// connection that the handler has taken over (a WebSocket's, for example) is closed. No end waits for a handler, nor for a
// caller that does not read. What wraps the writer outside of this needs an Unwrap method (http.ResponseController), or a
// write that waits for such a caller is left only when the caller reads or goes; nothing is written after it.
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
	if !known {
		refuse(w, g.unlisted(r.Context()))
		return
	}
	authorization, apiKey := r.Header.Values("Authorization"), r.Header.Values("X-Api-Key")
	admitted, refused := g.check(r.Context(), authorization, apiKey, g.clientIP(r), scopes)
	if refused != nil {
		refuse(w, refused)
		return
	}
	ctx, cancel := context.WithCancelCause(admitted.context(r.Context()))
	defer cancel(nil)
	answer := &stream{
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
	case refusedKey:
		header.Set("WWW-Authenticate", "Bearer")
	case refusedForNow:
		header.Set("Retry-After", "1")
	}
	w.WriteHeader(refused.http)
	json.NewEncoder(w).Encode(map[string]string{"error": refused.text}) // fails only where nobody reads any more
}
