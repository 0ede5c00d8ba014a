package tumbler

import (
	"net/netip"
	"strings"
)

// isLoopback says whether a gRPC target can only be this machine, so that plaintext to it crosses no network: a Unix
// socket, localhost, 127.0.0.0/8 or ::1. What is in doubt is not; dns://<server>/localhost, for instance, is whatever
// that server says.
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
