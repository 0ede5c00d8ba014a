package tumbler

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// GRPCOption configures an interceptor. A VerifyOption is one too, and applies to every call.
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

// ScopesByMethod demands the scopes that a function returns for the method ("/shop.v1.Orders/List"), in addition to the
// demands on every call. A method that the function does not know is refused. A known method without scopes accepts any
// valid key.
func ScopesByMethod(scopes func(fullMethod string) (required []string, known bool)) GRPCOption {
	return grpcOption(func(g *grpcGuard) { g.scopes = scopes })
}

// ClientIPByContext sets a function that returns the client's address for a call. The default is the connection's peer,
// which behind a proxy is the proxy. Read metadata only if your own proxy sets it.
func ClientIPByContext(clientIP func(context.Context) string) GRPCOption {
	return grpcOption(func(g *grpcGuard) { g.clientIP = clientIP })
}

// ExemptMethods admits calls of exactly these methods without a key: "/grpc.health.v1.Health/Check", for example.
func ExemptMethods(fullMethods ...string) GRPCOption {
	return grpcOption(func(g *grpcGuard) {
		for _, method := range fullMethods {
			g.exempt[method] = true
		}
	})
}

// UnaryServerInterceptor returns an interceptor that admits only calls with a valid key. The handler gets the verdict
// from FromContext. Without options any valid key is accepted.
//
// The guard takes the key from authorization: Bearer or from x-api-key, and refuses a call with more than one of these.
// A refused call ends with UNAUTHENTICATED if there is no valid key, PERMISSION_DENIED if the key does not allow the
// call, UNAVAILABLE if keys cannot be verified, and INTERNAL if a demand has the wrong form. The reason is logged, and
// not sent to the caller.
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

// StreamServerInterceptor is UnaryServerInterceptor for streams. The guard verifies the key when the stream begins, and
// ends the stream when the key stops being valid (EndStreams). The stream's context ends, and Send and Recv fail, even
// while they wait for a caller who neither reads nor writes. When the handler has returned, the caller gets the status
// that a new call would get.
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
			return ended // whatever the handler returned
		}
		return err
	}
}

// heldStream is a guarded stream. It ends with its context, which carries the verdict.
type heldStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *heldStream) Context() context.Context { return s.ctx }

// SendMsg returns as soon as the key has ended the stream, even if the caller does not read.
func (s *heldStream) SendMsg(message any) error {
	return s.unlessEnded(func() error { return s.ServerStream.SendMsg(message) })
}

// RecvMsg returns as soon as the key has ended the stream, even if the caller sends nothing for hours.
func (s *heldStream) RecvMsg(message any) error {
	return s.unlessEnded(func() error { return s.ServerStream.RecvMsg(message) })
}

// unlessEnded returns the result of do. As soon as the key has ended the stream, it returns the status of that end
// instead; do then returns when the handler has returned and the call ends. At most one send and one receive are in
// flight.
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
		o := <-done // the caller has disconnected, so this returns
		return o.result()
	}
}

type outcome struct {
	err      error
	panicked any
}

// result returns the error. A panic is repeated in the handler's goroutine, where a server may recover from it.
func (o outcome) result() error {
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.err
}

// ended returns the status with which the key has ended the stream, or nil.
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

// admit verifies the key of a call. It returns nil, nil for an exempt method.
func (g *grpcGuard) admit(ctx context.Context, method string) (*admission, error) {
	if g.exempt[method] {
		return nil, nil
	}
	scopes, known := g.scopes(method)
	authorization := metadata.ValueFromIncomingContext(ctx, "authorization")
	apiKey := metadata.ValueFromIncomingContext(ctx, "x-api-key")
	admitted, refused := g.check(ctx, authorization, apiKey, g.clientIP(ctx), scopes, known)
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
