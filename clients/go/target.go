package tumbler

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"google.golang.org/grpc/resolver"
)

// listed resolves a target that lists addresses, ipv4:192.0.2.1:50051,192.0.2.2:50051 for example. gRPC supports these
// schemes in other languages, but not in Go.
type listed string

func (l listed) Scheme() string { return string(l) }

func (l listed) Build(
	target resolver.Target, channel resolver.ClientConn, _ resolver.BuildOptions,
) (resolver.Resolver, error) {
	var state resolver.State
	for address := range strings.SplitSeq(target.Endpoint(), ",") {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("tumbler: target: %w", err)
		}
		// Each server's certificate names its own address.
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address, ServerName: host})
	}
	return settled{}, channel.UpdateState(state)
}

// OverrideAuthority returns the first address, because a list is not a valid authority.
func (listed) OverrideAuthority(target resolver.Target) string {
	first, _, _ := strings.Cut(target.Endpoint(), ",")
	return first
}

// settled is a resolver whose addresses never change.
type settled struct{}

func (settled) ResolveNow(resolver.ResolveNowOptions) {}
func (settled) Close()                                {}

// isLoopback reports whether a gRPC target can only be this machine: a Unix socket, localhost, 127.0.0.0/8 or ::1.
// Plaintext to it crosses no network. If in doubt it returns false: dns://<server>/localhost, for example, is whatever
// that server answers.
func isLoopback(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	for _, scheme := range []string{"dns:///", "dns:", "passthrough:///", "ipv4:", "ipv6:"} {
		if rest, found := strings.CutPrefix(target, scheme); found {
			target = rest
			break
		}
	}
	for address := range strings.SplitSeq(target, ",") {
		if !isLoopbackHost(host(address)) {
			return false
		}
	}
	return true
}

func host(address string) string {
	if inside, found := strings.CutPrefix(address, "["); found {
		inside, _, _ = strings.Cut(inside, "]")
		return inside
	}
	if strings.Count(address, ":") > 1 {
		return address
	}
	before, _, _ := strings.Cut(address, ":")
	return before
}

func isLoopbackHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}
