package tumbler

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// GRPCOption changes what an interceptor demands. A VerifyOption is one too, and holds for every call.
type GRPCOption interface{ applyGRPC(*grpcGuard) }

type grpcGuard struct {
	guard
	scopes   func(string) ([]string, bool)
	clientIP func(context.Context) string
	exempt   map[string]bool
}

type grpcOption func(*grpcGuard)

func (o grpcOption) applyGRPC(g *grpcGuard) { o(g) }

func (o VerifyOption) applyGRPC(g *grpcGuard) { g.fixed = append(g.fixed, o) }

// ScopesByMethod demands what a function says of the method ("/shop.v1.Orders/List"), beside what is demanded of all. A
// method that it does not know is refused; one for which it knows of no scopes passes with any valid key.
func ScopesByMethod(scopes func(fullMethod string) (required []string, known bool)) GRPCOption {
	return grpcOption(func(g *grpcGuard) { g.scopes = scopes })
}

// ClientIPByContext sends what a function makes of the call as the address that the key came from. Without it that is
// the connection's peer, which behind a proxy is the proxy. Read metadata only if your own proxy sets it.
func ClientIPByContext(clientIP func(context.Context) string) GRPCOption {
	return grpcOption(func(g *grpcGuard) { g.clientIP = clientIP })
}

// ExemptMethods lets calls of exactly these methods pass without a key: "/grpc.health.v1.Health/Check", for example.
func ExemptMethods(fullMethods ...string) GRPCOption {
	return grpcOption(func(g *grpcGuard) {
		for _, method := range fullMethods {
			g.exempt[method] = true
		}
	})
}

// UnaryServerInterceptor returns what lets only calls with a valid key through to a handler, which finds the verdict by
// FromContext. Without options any valid key will do.
//
// The key is that of authorization: Bearer or of x-api-key; with more than one of these there is none. What is not let
// through ends with UNAUTHENTICATED without a valid key, PERMISSION_DENIED where the key is not good for this,
// UNAVAILABLE where keys cannot be verified, and INTERNAL where what is demanded is not of the right form. The reason is
// logged and not told.
func UnaryServerInterceptor(v *Verifier, options ...GRPCOption) grpc.UnaryServerInterceptor {
	g := newGRPCGuard(v, options)
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		admitted, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(admitted.context(ctx), request)
	}
}

// StreamServerInterceptor is UnaryServerInterceptor for streams. The key is verified when a stream begins, and the stream
// ends when the key stops being valid (EndStreams): its context ends, Send and Recv fail, though the caller neither reads
// nor writes, and as soon as the handler has returned the caller is told what a new call would be.
func StreamServerInterceptor(v *Verifier, options ...GRPCOption) grpc.StreamServerInterceptor {
	g := newGRPCGuard(v, options)
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		admitted, err := g.admit(stream.Context(), info.FullMethod)
		switch {
		case err != nil:
			return err
		case admitted == nil:
			return handler(server, stream)
		}
		ctx, cancel := context.WithCancelCause(admitted.context(stream.Context()))
		defer cancel(nil)
		release := g.hold(ctx, admitted, func(refused *refusal) { cancel(refused.status()) })
		defer release()
		err = handler(server, &heldStream{stream, ctx})
		if ended := ended(ctx); ended != nil {
			return ended // whatever the handler made of it
		}
		return err
	}
}

// heldStream is a stream that ends with its context, which carries the verdict.
type heldStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *heldStream) Context() context.Context { return s.ctx }

// SendMsg does not wait for a caller who does not read, who need never do so.
func (s *heldStream) SendMsg(message any) error {
	return s.unlessEnded(func() error { return s.ServerStream.SendMsg(message) })
}

// RecvMsg does not wait for a caller who may have nothing to say for hours.
func (s *heldStream) RecvMsg(message any) error {
	return s.unlessEnded(func() error { return s.ServerStream.RecvMsg(message) })
}

// unlessEnded returns what do does, or the status by which the stream has ended with its key, as soon as it has. What do
// waits for then ends with the call, when the handler returns: there is one of each kind under way at the most.
func (s *heldStream) unlessEnded(do func() error) error {
	if err := ended(s.ctx); err != nil {
		return err
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			o.panicked = recover()
			done <- o
		}()
		o.err = do()
	}()
	select {
	case o := <-done:
		if ended := ended(s.ctx); ended != nil {
			return ended
		}
		return o.result()
	case <-s.ctx.Done():
		if ended := ended(s.ctx); ended != nil {
			return ended
		}
		o := <-done // the caller has gone, and this ends by it
		return o.result()
	}
}

type outcome struct {
	err      error
	panicked any
}

// result panics in the handler's goroutine, where a server may recover from it.
func (o outcome) result() error {
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.err
}

// ended returns the status by which a stream has ended with its key, if it has.
func ended(ctx context.Context) error {
	if _, known := status.FromError(context.Cause(ctx)); known && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func newGRPCGuard(v *Verifier, options []GRPCOption) *grpcGuard {
	g := &grpcGuard{
		guard:    guard{verifier: v},
		scopes:   func(string) ([]string, bool) { return nil, true },
		clientIP: peerIP,
		exempt:   make(map[string]bool),
	}
	for _, option := range options {
		option.applyGRPC(g)
	}
	return g
}

// admit returns nothing for a method that is exempt.
func (g *grpcGuard) admit(ctx context.Context, method string) (*admission, error) {
	if g.exempt[method] {
		return nil, nil
	}
	scopes, known := g.scopes(method)
	if !known {
		return nil, g.unlisted(ctx).status()
	}
	authorization := metadata.ValueFromIncomingContext(ctx, "authorization")
	apiKey := metadata.ValueFromIncomingContext(ctx, "x-api-key")
	admitted, refused := g.check(ctx, authorization, apiKey, g.clientIP(ctx), scopes)
	if refused != nil {
		return nil, refused.status()
	}
	return admitted, nil
}

func (r *refusal) status() error { return status.Error(r.grpc, r.text) }

func peerIP(ctx context.Context) string {
	if from, ok := peer.FromContext(ctx); ok && from.Addr != nil {
		return address(from.Addr.String())
	}
	return ""
}
