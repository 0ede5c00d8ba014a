package tumbler

import (
	"fmt"
	"slices"
)

// errUnsaid is what a Verifier that was not told whose keys to accept answers, where its own key sees those of all.
var errUnsaid = fmt.Errorf("%w: the verifier's own key can verify the keys of all projects: "+
	"use WithProjectID, or WithAnyProject, or a key of one project", ErrNotAllowed)

// projects are those whose keys a Verifier accepts: those that are named, else all that its own key sees.
type projects struct {
	named []string
	any   bool // that they are all is wished for
}

func (p *projects) unsaid() bool { return len(p.named) == 0 && !p.any }

// only returns the project that the server is asked for, where it is one.
func (p *projects) only() string {
	if len(p.named) == 1 {
		return p.named[0]
	}
	return ""
}

func (p *projects) accepts(id string) bool { return len(p.named) == 0 || slices.Contains(p.named, id) }

// areNamed says whether there are projects, and each has a name.
func areNamed(ids []string) bool { return len(ids) > 0 && !slices.Contains(ids, "") }
