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
	// maxChecks is the maximum number of keys that are being verified again at a time.
	maxChecks = 256
	// retryDelay is the wait before the next attempt after a key could not be verified.
	retryDelay = time.Second
	// minTrust is how long an answer counts at least, unless an event names its key or freshness lapses. Answers may live
	// for microseconds only, just before an expiry, or not at all.
	minTrust = time.Second
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
	clock          clock
	cache          *cache
	maxUnconfirmed time.Duration // how long a stream continues while its key cannot be verified
	verify         func(context.Context, string, ...VerifyOption) (*Verification, error)

	// changeCount counts the calls of changed. A caller reads it before it verifies a key, to detect a change in
	// between.
	changeCount atomic.Uint64

	checks sync.WaitGroup

	mu       sync.Mutex
	keys     map[keyIdent]*admittedKey
	byID     map[string]map[*admittedKey]bool
	queue    []*admittedKey
	checking int
	closed   error
}

type keyIdent struct {
	digest digest
	demand string
}

type checkState int

const (
	idle checkState = iota
	queued
	checking
)

// admittedKey is a key, its demand, and its open streams. The key's text is kept as long as one stream is open.
type admittedKey struct {
	id               keyIdent
	keyID            string
	key              string
	demand           verdict.Demand
	sessions         map[*session]bool
	state            checkState
	changedMeanwhile bool          // a change was reported while it was being verified
	until            time.Duration // while the cache is fresh, the last answer counts until then
	isUnconfirmed    bool          // it must be verified again
	unconfirmedSince time.Duration // when it became unconfirmed
	timerNumber      int           // counts the timers, so that a former timer has no effect
	stop             func()
}

// session is one open stream. ended is called at most once, in any goroutine, for example the one that reads the Watch
// stream or the one that closes the Verifier. It must not block.
type session struct {
	sessions *sessions
	admitted *admittedKey
	ended    func(*Verification, error)
}

func newSessions(s *settings, c *cache) *sessions {
	return &sessions{
		clock:          s.clock,
		cache:          c,
		maxUnconfirmed: s.maxStaleness,
		keys:           make(map[keyIdent]*admittedKey),
		byID:           make(map[string]map[*admittedKey]bool),
	}
}

// open registers a stream that a verdict admitted. since is the value of changeCount before that verification.
func (s *sessions) open(
	d digest, key string, demand *verdict.Demand, verification *Verification, since uint64,
	ended func(*Verification, error),
) *session {
	id := keyIdent{d, fmt.Sprintf("%q", *demand)}
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		ended(nil, s.closed)
		return &session{sessions: s, admitted: &admittedKey{}}
	}
	now := s.clock.now()
	k, known := s.keys[id]
	if !known {
		k = &admittedKey{
			id:       id,
			keyID:    verification.KeyID,
			key:      key,
			demand:   clone(demand),
			sessions: make(map[*session]bool),
		}
		k.demand.ProjectIDs = slices.Clone(demand.ProjectIDs) // clone leaves them out
		s.keys[id] = k
		if s.byID[k.keyID] == nil {
			s.byID[k.keyID] = make(map[*admittedKey]bool)
		}
		s.byID[k.keyID][k] = true
		s.scheduleRecheck(k, verification.until, now)
	}
	opened := &session{s, k, ended}
	k.sessions[opened] = true
	if since != s.changeCount.Load() {
		s.recheck(k, now, 0)
	}
	over := s.startChecks(now)
	s.mu.Unlock()
	over.end()
	return opened
}

// close removes a stream that has ended by itself. It may be called more than once.
func (o *session) close() {
	s := o.sessions
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(o.admitted.sessions, o)
	if len(o.admitted.sessions) == 0 {
		s.remove(o.admitted)
	}
}

// changed records that these keys have changed, or that all may have, and queues them to be verified again.
func (s *sessions) changed(all bool, keyIDs ...string) {
	s.changeCount.Add(1)
	s.mu.Lock()
	now, delay := s.clock.now(), time.Duration(0)
	if all {
		for _, k := range s.keys {
			s.recheck(k, now, min(delay, s.maxUnconfirmed/2))
			delay += spread
		}
	}
	for _, keyID := range keyIDs {
		for k := range s.byID[keyID] {
			s.recheck(k, now, 0)
		}
	}
	over := s.startChecks(now)
	s.mu.Unlock()
	over.end()
}

// close ends all streams, and every stream that is opened later.
func (s *sessions) close(err error) {
	s.mu.Lock()
	s.closed = err
	over := ending{err: err}
	for _, k := range s.keys {
		over.sessions = append(over.sessions, s.remove(k)...)
	}
	s.mu.Unlock()
	over.end()
}

func (s *sessions) len() (open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		open += len(k.sessions)
	}
	return open
}

// ending holds streams to end after the lock is released.
type ending struct {
	sessions     []*session
	verification *Verification
	err          error
}

func (e ending) end() {
	for _, session := range e.sessions {
		session.ended(e.verification, e.err)
	}
}

// startChecks starts verifications of queued keys. mu must be held, as in all functions below except check and onTimer.
func (s *sessions) startChecks(now time.Duration) (over ending) {
	over.err = errNotInTime
	for s.checking < maxChecks && len(s.queue) > 0 {
		k := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		switch {
		case len(k.sessions) == 0:
		case now-k.unconfirmedSince > s.maxUnconfirmed:
			over.sessions = append(over.sessions, s.remove(k)...)
		default:
			k.state, k.changedMeanwhile = checking, false
			s.checking++
			s.checks.Add(1)
			go s.check(k)
		}
	}
	return over
}

func (s *sessions) check(k *admittedKey) {
	defer s.checks.Done()
	verification, err := s.verify(context.Background(), k.key, VerifyOption{demand: k.demand})
	s.mu.Lock()
	now := s.clock.now()
	s.checking--
	k.state = idle
	over := ending{verification: verification, err: err}
	switch {
	case len(k.sessions) == 0:
	case err != nil && now-k.unconfirmedSince < s.maxUnconfirmed:
		s.setTimer(k, now+retryDelay, now)
	case err != nil, !verification.Valid:
		over.sessions = s.remove(k)
	case k.changedMeanwhile:
		s.recheck(k, now, 0)
	default:
		k.isUnconfirmed = false
		s.scheduleRecheck(k, verification.until, now)
	}
	late := s.startChecks(now)
	s.mu.Unlock()
	over.end()
	late.end()
}

func (s *sessions) recheck(k *admittedKey, now, delay time.Duration) {
	if !k.isUnconfirmed {
		k.isUnconfirmed, k.unconfirmedSince = true, now
	}
	switch {
	case k.state == checking:
		k.changedMeanwhile = true
	case k.state == idle && delay > 0:
		s.setTimer(k, min(k.until, now+delay), now)
	case k.state == idle:
		k.state = queued
		s.queue = append(s.queue, k)
	}
}

// scheduleRecheck leaves a valid key until its answer expires. If the cache is not fresh, the key rests for at most
// maxUnconfirmed.
func (s *sessions) scheduleRecheck(k *admittedKey, until, now time.Duration) {
	if now >= s.cache.freshUntil() {
		until = min(until, later(now, s.maxUnconfirmed))
	}
	s.setTimer(k, max(until, now+minTrust), now)
}

// setTimer sets the timer to look at a key at until, or earlier when freshness lapses.
func (s *sessions) setTimer(k *admittedKey, until, now time.Duration) {
	k.until = until
	if fresh := s.cache.freshUntil(); fresh > now {
		until = min(until, fresh)
	}
	if k.stop != nil {
		k.stop()
	}
	k.timerNumber++
	timerNumber := k.timerNumber
	k.stop = s.clock.afterFunc(max(0, until-now), func() { s.onTimer(k, timerNumber) })
}

func (s *sessions) onTimer(k *admittedKey, timerNumber int) {
	s.mu.Lock()
	var over ending
	if k.timerNumber == timerNumber && k.state == idle && len(k.sessions) > 0 {
		now := s.clock.now()
		if now < k.until && now < s.cache.freshUntil() {
			s.setTimer(k, k.until, now)
		} else {
			s.recheck(k, now, 0)
			over = s.startChecks(now)
		}
	}
	s.mu.Unlock()
	over.end()
}

func (s *sessions) remove(k *admittedKey) (over []*session) {
	for session := range k.sessions {
		over = append(over, session)
	}
	clear(k.sessions)
	if k.stop != nil {
		k.stop()
	}
	if s.keys[k.id] == k {
		delete(s.keys, k.id)
		delete(s.byID[k.keyID], k)
		if len(s.byID[k.keyID]) == 0 {
			delete(s.byID, k.keyID)
		}
	}
	return over
}
