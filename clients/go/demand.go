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
type VerifyOption struct {
	demand   verdict.Demand
	nameless bool // a project has no name
}

// RequireScopes demands that the key grants all of these, at most 100. Wildcards cannot be required.
func RequireScopes(scopes ...string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{RequiredScopes: scopes}}
}

// ClientIP says where the key was presented from, IPv4 or IPv6, without a port. A key that is restricted to networks is
// denied without it. Empty: not known.
func ClientIP(address string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{ClientIP: address}}
}

// Environment demands that the key belongs to this environment. Empty: to any, or to none.
func Environment(id string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{EnvironmentID: id}}
}

// Project demands that the key belongs to one of these projects; a key of another is answered CodeNotFound. It narrows
// what WithProjectID says, and never widens it; so does each that is said beside another. None, or one without a name,
// is ErrInvalidRequest.
func Project(ids ...string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{ProjectIDs: ids}, nameless: !areNamed(ids)}
}

// merge returns what all the options demand together, and whether a project that they name has no name.
func merge(options []VerifyOption) (all verdict.Demand, nameless bool) {
	for _, option := range options {
		nameless = nameless || option.nameless
		if ids := option.demand.ProjectIDs; all.ProjectIDs == nil {
			all.ProjectIDs = ids
		} else if ids != nil {
			all.ProjectIDs = common(all.ProjectIDs, ids)
		}
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
	return all, nameless
}

// common returns what is in both lists; never nil.
func common(one, other []string) []string {
	both := make([]string, 0, len(one))
	for _, id := range one {
		if slices.Contains(other, id) {
			both = append(both, id)
		}
	}
	return both
}

// clone returns a copy that shares no memory, but for the projects: the server is not asked for those of a caller, so
// that its answer serves others too. A call keeps one, so that the options of a Verify that needs no call can
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

// sameDemand says whether the server is asked the same.
func sameDemand(one, other *verdict.Demand) bool {
	return one.EnvironmentID == other.EnvironmentID && one.ClientIP == other.ClientIP &&
		slices.Equal(one.RequiredScopes, other.RequiredScopes)
}
