package tumbler

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"

	"google.golang.org/grpc/codes"
)

// FromContext returns the verdict by which a guard let the request at hand pass; ok is false where none did, as for an
// exempted one.
func FromContext(ctx context.Context) (v *Verification, ok bool) {
	v, ok = ctx.Value(contextKey{}).(*Verification)
	return v, ok
}

type contextKey struct{}

func newContext(ctx context.Context, v *Verification) context.Context {
	return context.WithValue(ctx, contextKey{}, v)
}

// refusal is what whoever presented a key is told: never which rule it broke.
type refusal struct {
	grpc codes.Code
	http int
	text string
}

var (
	refusedKey     = &refusal{codes.Unauthenticated, http.StatusUnauthorized, "a valid API key is required"}
	refusedUse     = &refusal{codes.PermissionDenied, http.StatusForbidden, "this API key does not allow that"}
	refusedForNow  = &refusal{codes.Unavailable, http.StatusServiceUnavailable, cannotVerify}
	refusedForever = &refusal{codes.Internal, http.StatusInternalServerError, cannotVerify}
)

const cannotVerify = "API keys cannot be verified at the moment"

// guard is what the guards of all kinds have in common.
type guard struct {
	verifier *Verifier
	fixed    []VerifyOption
	outlive  bool // what a key has let in goes on when it is not valid any more
}

// check lets a request in where the verdict is VALID, and else returns what to answer.
//
// The headers are all that came of their names.
func (g *guard) check(
	ctx context.Context, authorization, apiKey []string, clientIP string, scopes []string,
) (*admission, *refusal) {
	key, err := credential(authorization, apiKey)
	if err != nil {
		g.verifier.log.InfoContext(ctx, "tumbler: denied", "error", err.Error())
		return nil, refusedKey
	}
	demand := append([]VerifyOption{ClientIP(clientIP), RequireScopes(scopes...)}, g.fixed...)
	since := g.verifier.sessions.words.Load()
	found, err := g.verifier.Verify(ctx, key, demand...)
	if refused := g.judge(ctx, found, err); refused != nil {
		return nil, refused
	}
	held, _ := merge(demand)
	return &admission{found, key, held, since}, nil
}

// judge logs, and returns, what follows from a verdict or the lack of one; nil: the request may pass.
func (g *guard) judge(ctx context.Context, found *Verification, err error) *refusal {
	refused, log := g.weigh(ctx, found, err)
	log()
	return refused
}

// weigh is judge for whoever must not wait for a log.
func (g *guard) weigh(ctx context.Context, found *Verification, err error) (refused *refusal, log func()) {
	if err != nil {
		level, refused := slog.LevelError, refusedForNow
		switch {
		case isInvalid(err):
			refused = refusedForever
		case ctx.Err() != nil:
			level = slog.LevelDebug // whoever asked does not wait any more
		case isUnavailable(err):
			level = slog.LevelWarn
		}
		return refused, func() {
			g.verifier.log.Log(ctx, level, "tumbler: undecided", "error", err.Error())
		}
	}
	if found.Valid {
		return nil, func() {}
	}
	log = func() {
		g.verifier.log.InfoContext(ctx, "tumbler: denied", "code", found.Code.String(), "key_id", found.KeyID)
	}
	switch found.Code {
	case CodeEnvironmentMismatch, CodeIPNotAllowed, CodeInsufficientScope:
		return refusedUse, log
	default:
		return refusedKey, log
	}
}

// unlisted refuses what the guard's function of scopes does not know.
func (g *guard) unlisted(ctx context.Context) *refusal {
	g.verifier.log.InfoContext(ctx, "tumbler: denied: no scopes are listed for this request")
	return refusedUse
}

// address returns the address of a peer's host and port, or nothing where there is none that means the same elsewhere.
func address(hostPort string) string {
	found, err := netip.ParseAddrPort(hostPort)
	if err != nil || found.Addr().Zone() != "" {
		return ""
	}
	return found.Addr().String()
}
