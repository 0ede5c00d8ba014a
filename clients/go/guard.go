package tumbler

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"

	"google.golang.org/grpc/codes"
)

// FromContext returns the verdict by which a guard admitted the current request. ok is false if no guard verified it,
// for example because it is exempt.
func FromContext(ctx context.Context) (v *Verification, ok bool) {
	v, ok = ctx.Value(contextKey{}).(*Verification)
	return v, ok
}

type contextKey struct{}

func newContext(ctx context.Context, v *Verification) context.Context {
	return context.WithValue(ctx, contextKey{}, v)
}

// refusal is the answer to a caller who is not admitted. It never says which rule the key broke.
type refusal struct {
	grpc codes.Code
	http int
	text string
}

var (
	keyRequired = &refusal{codes.Unauthenticated, http.StatusUnauthorized, "a valid API key is required"}
	notAllowed  = &refusal{codes.PermissionDenied, http.StatusForbidden, "this API key does not allow that"}
	undecided   = &refusal{codes.Unavailable, http.StatusServiceUnavailable, cannotVerify}
	mistaken    = &refusal{codes.Internal, http.StatusInternalServerError, cannotVerify}
)

const cannotVerify = "API keys cannot be verified at the moment"

// guard is the common part of all guards.
type guard struct {
	verifier *Verifier
	fixed    []VerifyOption
	outlive  bool // streams continue when their key stops being valid
}

// check admits a request if the verdict is VALID, and otherwise returns the refusal.
//
// authorization and apiKey hold all of the request's headers with these names. If the scopes function does not know the
// request, no key lets it pass.
func (g *guard) check(
	ctx context.Context, authorization, apiKey []string, clientIP string, scopes []string, known bool,
) (*admission, *refusal) {
	key, err := credential(authorization, apiKey)
	if err != nil {
		g.verifier.log.InfoContext(ctx, "tumbler: denied", "error", err.Error())
		return nil, keyRequired
	}
	if !known {
		g.verifier.log.InfoContext(ctx, "tumbler: denied: no scopes are listed for this request")
		return nil, notAllowed
	}
	demand := append([]VerifyOption{ClientIP(clientIP), RequireScopes(scopes...)}, g.fixed...)
	since := g.verifier.sessions.changeCount.Load()
	verification, err := g.verifier.Verify(ctx, key, demand...)
	if refused := g.refusalFor(ctx, verification, err); refused != nil {
		return nil, refused
	}
	merged, _ := merge(demand)
	return &admission{verification, key, merged, since}, nil
}

// refusalFor returns the refusal that a verdict or an error leads to, and logs it. nil means that the request may pass.
func (g *guard) refusalFor(ctx context.Context, verification *Verification, err error) *refusal {
	refused, log := g.refusalAndLog(ctx, verification, err)
	log()
	return refused
}

// refusalAndLog is refusalFor for callers that must not wait for the logger: it returns a function that logs.
func (g *guard) refusalAndLog(
	ctx context.Context, verification *Verification, err error,
) (refused *refusal, log func()) {
	if err != nil {
		level, refused := slog.LevelError, undecided
		switch {
		case isInvalid(err):
			refused = mistaken
		case ctx.Err() != nil:
			level = slog.LevelDebug // the caller no longer waits
		case isUnavailable(err):
			level = slog.LevelWarn
		}
		return refused, func() {
			g.verifier.log.Log(ctx, level, "tumbler: undecided", "error", err.Error())
		}
	}
	if verification.Valid {
		return nil, func() {}
	}
	log = func() {
		g.verifier.log.InfoContext(ctx, "tumbler: denied",
			"code", verification.Code.String(), "key_id", verification.KeyID)
	}
	switch verification.Code {
	case CodeEnvironmentMismatch, CodeIPNotAllowed, CodeInsufficientScope:
		return notAllowed, log
	default:
		return keyRequired, log
	}
}

// address returns the IP address in a peer's host:port. It returns "" if there is none, or if the address has a zone,
// which has a meaning only on this machine.
func address(hostPort string) string {
	found, err := netip.ParseAddrPort(hostPort)
	if err != nil || found.Addr().Zone() != "" {
		return ""
	}
	return found.Addr().String()
}
