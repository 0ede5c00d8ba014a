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
		ctx, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, request)
	}
}

// StreamServerInterceptor is UnaryServerInterceptor for streams. The key is verified when a stream begins; one that is
// revoked later does not end it.
func StreamServerInterceptor(v *Verifier, options ...GRPCOption) grpc.StreamServerInterceptor {
	g := newGRPCGuard(v, options)
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := g.admit(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return handler(server, &admitted{stream, ctx})
	}
}

// admitted is a stream whose context carries the verdict.
type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *admitted) Context() context.Context { return s.ctx }

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

func (g *grpcGuard) admit(ctx context.Context, method string) (context.Context, error) {
	if g.exempt[method] {
		return ctx, nil
	}
	scopes, known := g.scopes(method)
	if !known {
		return nil, g.unlisted(ctx).status()
	}
	authorization := metadata.ValueFromIncomingContext(ctx, "authorization")
	apiKey := metadata.ValueFromIncomingContext(ctx, "x-api-key")
	found, refused := g.check(ctx, authorization, apiKey, g.clientIP(ctx), scopes)
	if refused != nil {
		return nil, refused.status()
	}
	return newContext(ctx, found), nil
}

func (r *refusal) status() error { return status.Error(r.grpc, r.text) }

func peerIP(ctx context.Context) string {
	if from, ok := peer.FromContext(ctx); ok && from.Addr != nil {
		return address(from.Addr.String())
	}
	return ""
}
