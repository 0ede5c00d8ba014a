package tumbler

import (
	"slices"
	"strings"

	"tumbler.dev/go/internal/verdict"
)

// VerifyOption says what a key must be good for. Several of a kind add up; of two environments or addresses the last
// counts. It is a plain value: one that is the same for every call may be made once and used for ever.
//
// As an option of a guard it holds for every request.
type VerifyOption struct{ demand verdict.Demand }

// RequireScopes demands that the key grants all of these, at most 100. Wildcards cannot be required.
func RequireScopes(scopes ...string) VerifyOption {
	return VerifyOption{verdict.Demand{RequiredScopes: scopes}}
}

// ClientIP says where the key was presented from, IPv4 or IPv6, without a port. A key that is restricted to networks is
// denied without it. Empty: not known.
func ClientIP(address string) VerifyOption {
	return VerifyOption{verdict.Demand{ClientIP: address}}
}

// Environment demands that the key belongs to this environment. Empty: to any, or to none.
func Environment(id string) VerifyOption {
	return VerifyOption{verdict.Demand{EnvironmentID: id}}
}

// merge returns what all the options demand together.
func merge(options []VerifyOption) (all verdict.Demand) {
	for _, option := range options {
		if scopes := option.demand.RequiredScopes; len(all.RequiredScopes) == 0 {
			all.RequiredScopes = scopes
		} else if len(scopes) > 0 {
			all.RequiredScopes = slices.Concat(all.RequiredScopes, scopes)
		}
		if option.demand.ClientIP != "" {
			all.ClientIP = option.demand.ClientIP
		}
		if option.demand.EnvironmentID != "" {
			all.EnvironmentID = option.demand.EnvironmentID
		}
	}
	return all
}

// clone returns a copy that shares no memory. A call keeps one, so that the options of a Verify that needs no call can
// stay on its caller's stack.
func clone(demand *verdict.Demand) verdict.Demand {
	scopes := make([]string, len(demand.RequiredScopes))
	for place, scope := range demand.RequiredScopes {
		scopes[place] = strings.Clone(scope)
	}
	return verdict.Demand{
		EnvironmentID:  strings.Clone(demand.EnvironmentID),
		RequiredScopes: scopes,
		ClientIP:       strings.Clone(demand.ClientIP),
	}
}

func sameDemand(one, other *verdict.Demand) bool {
	return one.EnvironmentID == other.EnvironmentID && one.ClientIP == other.ClientIP &&
		slices.Equal(one.RequiredScopes, other.RequiredScopes)
}
