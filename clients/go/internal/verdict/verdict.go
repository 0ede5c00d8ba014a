// Package verdict decides whether a key meets a demand. It has the same rules as the server, tested by the same vectors
// (tests/vectors/verify.json).
package verdict

import (
	"math"
	"net/netip"
	"slices"
	"strings"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// Never is an instant after all others.
const Never = math.MaxInt64

// reserved is the prefix of scopes that are permissions on Tumbler itself. The scope * does not grant them.
const reserved = "tumbler:"

// Record is the part of a proven key that decides. Times are microseconds since the Unix epoch.
type Record struct {
	ProjectID       string
	EnvironmentID   string
	Scopes          []string
	Networks        []netip.Prefix // empty: any address
	Revoked         bool
	Inactive        bool
	ExpireTime      int64 // Never: the key does not expire
	GraceExpireTime int64 // Never: the key was not rotated
}

// Demand is what a caller demands of a key. A zero field is no demand.
type Demand struct {
	ProjectIDs     []string // the key must belong to one of them; nil: to any; empty: to none
	EnvironmentID  string
	RequiredScopes []string
	ClientIP       string
}

// Decide returns the first reason to deny, or VALID if there is none. A nil record means that nothing was proven.
// Decide does not check the form of the key, so it never returns MALFORMED.
func Decide(record *Record, demand *Demand, now int64) tumblerv1.VerifyCode {
	switch {
	case record == nil, demand.Excludes(record.ProjectID):
		return tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND
	case record.Revoked:
		return tumblerv1.VerifyCode_VERIFY_CODE_REVOKED
	case now >= record.GraceExpireTime:
		return tumblerv1.VerifyCode_VERIFY_CODE_SUPERSEDED
	case record.Inactive:
		return tumblerv1.VerifyCode_VERIFY_CODE_INACTIVE
	case now >= record.ExpireTime:
		return tumblerv1.VerifyCode_VERIFY_CODE_EXPIRED
	case demand.EnvironmentID != "" && record.EnvironmentID != demand.EnvironmentID:
		return tumblerv1.VerifyCode_VERIFY_CODE_ENVIRONMENT_MISMATCH
	case len(record.Networks) > 0 && !within(record.Networks, demand.ClientIP):
		return tumblerv1.VerifyCode_VERIFY_CODE_IP_NOT_ALLOWED
	}
	for _, scope := range demand.RequiredScopes {
		if !anyGrants(record.Scopes, scope) {
			return tumblerv1.VerifyCode_VERIFY_CODE_INSUFFICIENT_SCOPE
		}
	}
	return tumblerv1.VerifyCode_VERIFY_CODE_VALID
}

// Excludes reports whether the demand rules out keys of this project.
func (d *Demand) Excludes(projectID string) bool {
	return d.ProjectIDs != nil && !slices.Contains(d.ProjectIDs, projectID)
}

// Networks parses a key's allowed_cidrs. An entry that cannot be parsed stays in the list and contains no address:
// otherwise a key could become usable from anywhere because this client does not understand its networks.
func Networks(cidrs []string) []netip.Prefix {
	networks := make([]netip.Prefix, len(cidrs))
	for place, cidr := range cidrs {
		network, err := netip.ParsePrefix(cidr)
		if address, notAddress := netip.ParseAddr(cidr); err != nil && notAddress == nil && address.Zone() == "" {
			network = netip.PrefixFrom(address, address.BitLen())
		}
		networks[place] = network
	}
	return networks
}

func within(networks []netip.Prefix, clientIP string) bool {
	// ParseAddr's error keeps the text: without the clone, every caller's demand would move to the heap.
	address, err := netip.ParseAddr(strings.Clone(clientIP))
	// An address with a zone has a meaning only on its own machine, so it matches no network.
	if err != nil || address.Zone() != "" {
		return false
	}
	address = address.Unmap()
	for _, network := range networks {
		if network.Contains(address) {
			return true
		}
	}
	return false
}

func anyGrants(granted []string, required string) bool {
	for _, scope := range granted {
		if grants(scope, required) {
			return true
		}
	}
	return false
}

func grants(granted, required string) bool {
	switch granted {
	case required:
		return true
	case "*":
		return !strings.HasPrefix(required, reserved)
	default:
		return strings.HasSuffix(granted, ":*") && strings.HasPrefix(required, granted[:len(granted)-1])
	}
}
