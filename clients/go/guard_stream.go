package tumbler

import (
	"context"

	"tumbler.dev/go/internal/verdict"
)

// StreamOption says what becomes of a stream when its key stops being valid. It is an option of all guards.
type StreamOption bool

// EndStreams says whether what a key has let in ends when the key stops being valid, which is so where it is not said:
// calls of gRPC that stream, and HTTP answers that were flushed, are longer than 64 KiB, or whose connection was taken
// over (WebSockets). Ordinary calls and answers run to their end.
func EndStreams(end bool) StreamOption { return StreamOption(end) }

func (o StreamOption) applyGRPC(g *grpcGuard) { g.outlive = !bool(o) }
func (o StreamOption) applyHTTP(g *httpGuard) { g.outlive = !bool(o) }

// admission is a request that was let in, and what its key was held to.
type admission struct {
	found  *Verification
	key    string
	demand verdict.Demand
	since  uint64
}

// context returns one that carries the verdict; that of a request that needed no key is left as it is.
func (a *admission) context(ctx context.Context) context.Context {
	if a == nil {
		return ctx
	}
	return newContext(ctx, a.found)
}

// hold has end called, once at the most, when the key is not valid any more, unless release is called before. The end of
// one stream must not hold up that of others: end must not wait for anything.
func (g *guard) hold(ctx context.Context, a *admission, end func(*refusal)) (release func()) {
	if g.outlive {
		return func() {}
	}
	// The context may have ended by the time; what it holds for logs counts still.
	ctx = context.WithoutCancel(ctx)
	opened := g.verifier.sessions.open(g.verifier.digester.of(a.key), a.key, &a.demand, a.found, a.since,
		func(found *Verification, err error) {
			refused, log := g.weigh(ctx, found, err)
			end(refused)
			go log()
		})
	return opened.close
}
