package tumbler

import (
	"slices"
	"strings"

	"tumbler.dev/go/internal/verdict"
)

// VerifyOption is a demand on a key. Required scopes add up, and projects narrow each other. If several environments or
// addresses are given, the last counts. A VerifyOption is a plain value: create it once and reuse it for all calls.
//
// As an option of a guard it applies to every request.
type VerifyOption struct {
	demand         verdict.Demand
	invalidProject bool // Project got no id, or an empty one
}

// RequireScopes demands that the key grants all of these scopes, at most 100. Wildcards cannot be required.
func RequireScopes(scopes ...string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{RequiredScopes: scopes}}
}

// ClientIP sets the address that the key was presented from, IPv4 or IPv6, without a port. Empty means unknown. A key
// that is restricted to networks is denied without it.
func ClientIP(address string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{ClientIP: address}}
}

// Environment demands that the key belongs to this environment. Empty means no demand.
func Environment(id string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{EnvironmentID: id}}
}

// Project demands that the key belongs to one of these projects. A key of another project is CodeNotFound. Project
// narrows what WithProjectID accepts, and never widens it; several Project options narrow each other. No id, or an
// empty one, is ErrInvalidRequest.
func Project(ids ...string) VerifyOption {
	return VerifyOption{demand: verdict.Demand{ProjectIDs: ids}, invalidProject: !areValidProjects(ids)}
}

// merge returns the combined demand of all options, and whether one of them is a Project without ids or with an empty
// one.
func merge(options []VerifyOption) (all verdict.Demand, invalidProject bool) {
	for _, option := range options {
		invalidProject = invalidProject || option.invalidProject
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
	return all, invalidProject
}

// common returns the elements of both lists. The result is never nil.
func common(one, other []string) []string {
	both := make([]string, 0, len(one))
	for _, id := range one {
		if slices.Contains(other, id) {
			both = append(both, id)
		}
	}
	return both
}

// clone returns a deep copy without the projects: those are checked here and not sent, so that the answer serves other
// callers too. A call keeps a clone, so the options of a Verify that needs no call can stay on the caller's stack.
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

// sameDemand reports whether both demands lead to the same request.
func sameDemand(one, other *verdict.Demand) bool {
	return one.EnvironmentID == other.EnvironmentID && one.ClientIP == other.ClientIP &&
		slices.Equal(one.RequiredScopes, other.RequiredScopes)
}
