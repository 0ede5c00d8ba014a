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
	// mostAsked is the maximum number of keys that are being verified again at a time.
	mostAsked = 256
	// retryPause is the wait before the next attempt after a key could not be verified.
	retryPause = time.Second
	// shortestTrust is how long an answer counts at least. Just before an expiry, answers live for microseconds only.
	shortestTrust = 100 * time.Millisecond
	// spread is the time from one key to the next if all must be verified again: 1,000 a second.
	spread = time.Millisecond
	// always is later than every instant.
	always = time.Duration(math.MaxInt64)
)

// sessions holds the guarded streams of a Verifier that are open, and their keys.
//
// A key is verified again after an event that names it, after a reset, after an answer that denied it, when freshness
// lapses, and when its record's cache_ttl ends, which is never after the key's expiry or the end of its grace period.
// If the key is then not VALID, its streams end.
type sessions struct {
	clock    clock
	memory   *memory
	patience time.Duration // how long a stream continues while its key cannot be verified
	verify   func(context.Context, string, ...VerifyOption) (*Verification, error)

	// words counts the reports to heard. A caller reads it before it verifies a key, to detect a report in between.
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

// held is a key, its demand, and its open streams. The key's text is kept as long as one stream is open.
type held struct {
	id       heldID
	keyID    string
	key      string
	demand   verdict.Demand
	sessions map[*session]bool
	state    heldState
	again    bool          // a change was reported while it was being verified
	until    time.Duration // while the cache is fresh, the last answer counts until then
	doubted  bool          // it must be verified again
	since    time.Duration // when it became doubted
	armed    int           // counts the timers, so that a former timer has no effect
	stop     func()
}

// session is one open stream. ended is called at most once, in any goroutine, for example the one that reads the Watch
// stream or the one that closes the Verifier. It must not block.
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

// open registers a stream that a verdict admitted. since is the value of words before that verification.
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
		h.demand.ProjectIDs = slices.Clone(demand.ProjectIDs) // clone leaves them out
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

// close removes a stream that has ended by itself. It may be called more than once.
func (o *session) close() {
	s := o.all
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(o.held.sessions, o)
	if len(o.held.sessions) == 0 {
		s.drop(o.held)
	}
}

// heard records that these keys have changed, or that all may have, and queues them to be verified again.
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

// close ends all streams, and every stream that is opened later.
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

// ending holds streams to end after the lock is released.
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

// pump starts verifications of queued keys. mu must be held, as in all functions below except ask and look.
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

// rest leaves a valid key until its answer expires. If the cache is not fresh, the key rests for at most patience.
func (s *sessions) rest(h *held, until, now time.Duration) {
	if now >= s.memory.freshUntil() {
		until = min(until, now+s.patience)
	}
	s.arm(h, max(until, now+shortestTrust), now)
}

// arm sets the timer to look at a key at until, or earlier when freshness lapses.
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
