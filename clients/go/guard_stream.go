package tumbler

import (
	"context"

	"tumbler.dev/go/internal/verdict"
)

// StreamOption sets what happens to a stream when its key stops being valid. It is an option of all guards.
type StreamOption bool

// EndStreams sets whether a guard ends streams when their key stops being valid. The default is true. Streams are
// streaming gRPC calls, and HTTP answers that are flushed, are longer than 64 KiB, or whose connection was taken over
// (WebSockets). Ordinary calls and answers run to their end.
func EndStreams(end bool) StreamOption { return StreamOption(end) }

func (o StreamOption) applyGRPC(g *grpcGuard) { g.outlive = !bool(o) }
func (o StreamOption) applyHTTP(g *httpGuard) { g.outlive = !bool(o) }

// admission is an admitted request, and the demand that its key met.
type admission struct {
	verification *Verification
	key          string
	demand       verdict.Demand
	since        uint64 // sessions.changeCount before the key was verified
}

// context returns a context that carries the verdict. A nil admission (no key needed) returns ctx.
func (a *admission) context(ctx context.Context) context.Context {
	if a == nil {
		return ctx
	}
	return newContext(ctx, a.verification)
}

// hold calls end, at most once, when the key stops being valid, unless release is called first. end must not block: one
// stream must not delay the end of another.
func (g *guard) hold(ctx context.Context, a *admission, end func(*refusal)) (release func()) {
	if g.outlive {
		return func() {}
	}
	// The context may have ended by then, but logs still need its values.
	ctx = context.WithoutCancel(ctx)
	opened := g.verifier.sessions.open(g.verifier.digester.digest(a.key), a.key, &a.demand, a.verification, a.since,
		func(verification *Verification, err error) {
			refused, log := g.refusalAndLog(ctx, verification, err)
			end(refused)
			go log()
		})
	return opened.close
}
