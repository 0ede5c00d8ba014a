package tumbler

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tumbler.dev/go/internal/verdict"
)

const (
	// mostAsked is how many keys are verified anew at a time.
	mostAsked = 256
	// retryPause is how long to wait before a key that could not be verified is asked about again.
	retryPause = time.Second
	// shortestTrust is how long an answer counts at least: the last ones before an expiry live for microseconds.
	shortestTrust = 100 * time.Millisecond
	// spread is from one key to the next, where all have to be verified: 1,000 a second.
	spread = time.Millisecond
	// always is later than every moment.
	always = time.Duration(math.MaxInt64)
)

// sessions are the open streams that a Verifier's guards have let in, and the keys that they were let in by.
//
// A key is verified anew when nothing vouches for it any more: after an event that names it, a reset, a loss of trust in
// the stream of changes, an answer that denied it, and at the end of its record's cache_ttl, which is never past its
// expiry or the end of its grace. Streams whose key is then not VALID end.
type sessions struct {
	clock    clock
	memory   *memory
	patience time.Duration // for so long a stream may go on whose key cannot be verified
	verify   func(context.Context, string, ...VerifyOption) (*Verification, error)

	// words is how often anything was told. Noted before a key is verified, it shows what came in between.
	words atomic.Uint64

	asking sync.WaitGroup

	mu     sync.Mutex
	held   map[heldID]*held
	byID   map[string]map[*held]bool
	queue  []*held
	asked  int
	closed error
}

type heldID struct {
	digest digest
	demand string
}

type heldState int

const (
	resting heldState = iota
	queued
	beingAsked
)

// held is a key, what it was presented for, and the streams that it let in. Its text is kept for as long as one is open.
type held struct {
	id       heldID
	keyID    string
	key      string
	demand   verdict.Demand
	sessions map[*session]bool
	state    heldState
	again    bool          // something was told while it was asked about
	until    time.Duration // while the stream of changes is alive, the last answer counts until then
	doubted  bool
	since    time.Duration // and since when it is
	armed    int
	stop     func()
}

// session is one open stream. ended is called once at the most, in the goroutine that reads the stream of changes, or that
// closes the Verifier, or any: it must not wait.
type session struct {
	all   *sessions
	held  *held
	ended func(*Verification, error)
}

func newSessions(s *settings, m *memory) *sessions {
	return &sessions{
		clock:    s.clock,
		memory:   m,
		patience: s.maxStaleness,
		held:     make(map[heldID]*held),
		byID:     make(map[string]map[*held]bool),
	}
}

// open notes a stream that was let in by a verdict, asked for when words was since.
func (s *sessions) open(
	d digest, key string, demand *verdict.Demand, found *Verification, since uint64, ended func(*Verification, error),
) *session {
	id := heldID{d, fmt.Sprintf("%q", *demand)}
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		ended(nil, s.closed)
		return &session{all: s, held: &held{}}
	}
	now := s.clock.now()
	h, known := s.held[id]
	if !known {
		h = &held{id: id, keyID: found.KeyID, key: key, demand: clone(demand), sessions: make(map[*session]bool)}
		h.demand.ProjectIDs = slices.Clone(demand.ProjectIDs) // a call's own demand has none
		s.held[id] = h
		if s.byID[h.keyID] == nil {
			s.byID[h.keyID] = make(map[*held]bool)
		}
		s.byID[h.keyID][h] = true
		s.rest(h, found.until, now)
	}
	opened := &session{s, h, ended}
	h.sessions[opened] = true
	if since != s.words.Load() {
		s.doubt(h, now, 0)
	}
	over := s.pump(now)
	s.mu.Unlock()
	over.end()
	return opened
}

// close forgets a stream that has ended by itself. It may be called again.
func (o *session) close() {
	s := o.all
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(o.held.sessions, o)
	if len(o.held.sessions) == 0 {
		s.drop(o.held)
	}
}

// heard notes that keys have changed, or that all may have.
func (s *sessions) heard(all bool, keyIDs ...string) {
	s.words.Add(1)
	s.mu.Lock()
	now, delay := s.clock.now(), time.Duration(0)
	if all {
		for _, h := range s.held {
			s.doubt(h, now, min(delay, s.patience/2))
			delay += spread
		}
	}
	for _, keyID := range keyIDs {
		for h := range s.byID[keyID] {
			s.doubt(h, now, 0)
		}
	}
	over := s.pump(now)
	s.mu.Unlock()
	over.end()
}

// close ends all streams, and each that is opened later.
func (s *sessions) close(err error) {
	s.mu.Lock()
	s.closed = err
	over := ending{err: err}
	for _, h := range s.held {
		over.sessions = append(over.sessions, s.drop(h)...)
	}
	s.mu.Unlock()
	over.end()
}

func (s *sessions) len() (open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		open += len(h.sessions)
	}
	return open
}

// ending is streams that are to end, once no lock is held any more.
type ending struct {
	sessions []*session
	found    *Verification
	err      error
}

func (e ending) end() {
	for _, session := range e.sessions {
		session.ended(e.found, e.err)
	}
}

// pump asks about those whose turn it is. The lock must be held, here and in all that follows but ask.
func (s *sessions) pump(now time.Duration) (over ending) {
	over.err = errNotInTime
	for s.asked < mostAsked && len(s.queue) > 0 {
		h := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		switch {
		case len(h.sessions) == 0:
		case now-h.since > s.patience:
			over.sessions = append(over.sessions, s.drop(h)...)
		default:
			h.state, h.again = beingAsked, false
			s.asked++
			s.asking.Add(1)
			go s.ask(h)
		}
	}
	return over
}

func (s *sessions) ask(h *held) {
	defer s.asking.Done()
	found, err := s.verify(context.Background(), h.key, VerifyOption{demand: h.demand})
	s.mu.Lock()
	now := s.clock.now()
	s.asked--
	h.state = resting
	over := ending{found: found, err: err}
	switch {
	case len(h.sessions) == 0:
	case err != nil && now-h.since < s.patience:
		s.arm(h, now+retryPause, now)
	case err != nil, !found.Valid:
		over.sessions = s.drop(h)
	case h.again:
		s.doubt(h, now, 0)
	default:
		h.doubted = false
		s.rest(h, found.until, now)
	}
	late := s.pump(now)
	s.mu.Unlock()
	over.end()
	late.end()
}

func (s *sessions) doubt(h *held, now, delay time.Duration) {
	if !h.doubted {
		h.doubted, h.since = true, now
	}
	switch {
	case h.state == beingAsked:
		h.again = true
	case h.state == resting && delay > 0:
		s.arm(h, min(h.until, now+delay), now)
	case h.state == resting:
		h.state = queued
		s.queue = append(s.queue, h)
	}
}

// rest lets a key be that was found valid: for as long as the answer counts, and is vouched for.
func (s *sessions) rest(h *held, until, now time.Duration) {
	if now >= s.memory.freshUntil() {
		until = min(until, now+s.patience)
	}
	s.arm(h, max(until, now+shortestTrust), now)
}

// arm has a key looked at then, and when trust lapses.
func (s *sessions) arm(h *held, until, now time.Duration) {
	h.until = until
	if fresh := s.memory.freshUntil(); fresh > now {
		until = min(until, fresh)
	}
	if h.stop != nil {
		h.stop()
	}
	h.armed++
	armed := h.armed
	h.stop = s.clock.afterFunc(max(0, until-now), func() { s.look(h, armed) })
}

func (s *sessions) look(h *held, armed int) {
	s.mu.Lock()
	var over ending
	if h.armed == armed && h.state == resting && len(h.sessions) > 0 {
		now := s.clock.now()
		if now < h.until && now < s.memory.freshUntil() {
			s.arm(h, h.until, now)
		} else {
			s.doubt(h, now, 0)
			over = s.pump(now)
		}
	}
	s.mu.Unlock()
	over.end()
}

func (s *sessions) drop(h *held) (over []*session) {
	for session := range h.sessions {
		over = append(over, session)
	}
	clear(h.sessions)
	if h.stop != nil {
		h.stop()
	}
	if s.held[h.id] == h {
		delete(s.held, h.id)
		delete(s.byID[h.keyID], h)
		if len(s.byID[h.keyID]) == 0 {
			delete(s.byID, h.keyID)
		}
	}
	return over
}
