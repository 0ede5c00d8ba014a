package tumbler

import (
	"fmt"
	"slices"
)

// errProjectRequired is the error of a Verifier whose own key sees all projects if no option says which projects to
// accept.
var errProjectRequired = fmt.Errorf("%w: the verifier's own key can verify the keys of all projects: "+
	"use WithProjectID, or WithAnyProject, or a key of one project", ErrNotAllowed)

// projects are the projects whose keys a Verifier accepts: the named ones, or else all that its own key sees.
type projects struct {
	named []string
	any   bool // WithAnyProject is set
}

func (p *projects) lacksProject() bool { return len(p.named) == 0 && !p.any }

// only returns the project to name in requests if there is exactly one, and otherwise "".
func (p *projects) only() string {
	if len(p.named) == 1 {
		return p.named[0]
	}
	return ""
}

func (p *projects) accepts(id string) bool { return len(p.named) == 0 || slices.Contains(p.named, id) }

// areValidProjects reports whether there is at least one id, and none is empty.
func areValidProjects(ids []string) bool { return len(ids) > 0 && !slices.Contains(ids, "") }
