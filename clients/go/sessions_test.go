package tumbler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"tumbler.dev/go/internal/verdict"
)

// ends collects how streams ended.
type ends struct {
	mu   sync.Mutex
	seen []string
}

func (e *ends) by(name string) func(*Verification, error) {
	return func(found *Verification, err error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if err != nil {
			e.seen = append(e.seen, name+" undecided")
		} else {
			e.seen = append(e.seen, name+" "+found.Code.String())
		}
	}
}

func (e *ends) all() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return fmt.Sprint(e.seen)
}

// asked is a verification of a guarded stream's key, which the test answers.
type asked struct {
	key    string
	demand verdict.Demand
	found  *Verification
	err    error
	done   chan struct{}
}

func (a *asked) answer(code Code, until time.Duration) {
	a.found = &Verification{Valid: code == CodeValid, Code: code, KeyID: idOf(a.key), until: until}
	close(a.done)
}

func (a *asked) fail() {
	a.err = ErrUnavailable
	close(a.done)
}

// holding is the sessions of a Verifier that is fresh, with a clock and verdicts that a test controls.
type holding struct {
	*world
	*sessions
	ends
	stream *fakeStream
	asks   chan *asked
}

func newHolding(t *testing.T) *holding {
	t.Helper()
	h := &holding{asks: make(chan *asked, 20_000)}
	h.world, h.stream = listening(t)
	h.sessions = h.verifier.sessions
	over := make(chan struct{})
	t.Cleanup(func() { close(over) }) // a pending verification must not keep the Verifier from closing
	h.sessions.verify = func(_ context.Context, key string, options ...VerifyOption) (*Verification, error) {
		demand, _ := merge(options)
		a := &asked{key: key, demand: demand, done: make(chan struct{})}
		h.asks <- a
		select {
		case <-a.done:
			return a.found, a.err
		case <-over:
			return nil, ErrUnavailable
		}
	}
	return h
}

func (h *holding) open(key int, name string, scopes ...string) *session {
	text := testKey(key, 'a')
	found := &Verification{Valid: true, Code: CodeValid, KeyID: idOf(text), until: h.world.clock.now() + time.Minute}
	return h.sessions.open(h.verifier.digester.digest(text), text, &verdict.Demand{RequiredScopes: scopes}, found,
		h.changeCount.Load(), h.by(name))
}

func (h *holding) next() *asked {
	h.Helper()
	select {
	case a := <-h.asks:
		return a
	case <-time.After(patience):
		h.Fatal("nothing is asked")
		return nil
	}
}

// quiet waits until only these keys are being verified.
func (h *holding) quiet(under ...*asked) {
	h.Helper()
	h.eventually("no more is asked about", func() bool {
		h.sessions.mu.Lock()
		defer h.sessions.mu.Unlock()
		return h.sessions.checking == len(under)
	})
	if len(h.asks) > 0 {
		h.Fatalf("%d are asked about, and not %d", len(h.asks)+len(under), len(under))
	}
}

func (h *holding) become(want string) {
	h.Helper()
	h.eventually("streams end: "+want, func() bool { return h.all() == want })
}

func (h *holding) rests() bool {
	h.sessions.mu.Lock()
	defer h.sessions.mu.Unlock()
	for _, held := range h.sessions.keys {
		if held.isUnconfirmed || held.state != idle {
			return false
		}
	}
	return true
}

func TestAnEventEndsTheStreamsOfItsKeyAlone(t *testing.T) {
	for _, code := range []Code{CodeRevoked, CodeInactive, CodeExpired, CodeSuperseded, CodeNotFound, CodeIPNotAllowed, 77} {
		h := newHolding(t)
		h.open(1, "one")
		h.open(1, "one")
		h.open(2, "other")
		h.deliver(h.stream, changed("a", 11, testKey(1, 'a')))
		h.next().answer(code, 0)
		h.become(fmt.Sprintf("[one %v one %v]", code, code))
		if h.sessions.len() != 1 {
			t.Errorf("%d are open", h.sessions.len())
		}
		h.quiet()
	}
}

func TestAStreamWhoseKeyIsStillGoodForItGoesOn(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one", "orders:read")
	h.open(1, "other", "orders:write")
	h.deliver(h.stream, changed("a", 11, testKey(1, 'a')))
	for range 2 {
		if a := h.next(); a.demand.RequiredScopes[0] == "orders:write" {
			a.answer(CodeInsufficientScope, 0)
		} else {
			a.answer(CodeValid, time.Minute)
		}
	}
	h.become("[other INSUFFICIENT_SCOPE]")
	h.eventually("the other rests", h.rests)
}

func TestAKeyIsHeldToAllThatWasDemanded(t *testing.T) {
	h := newHolding(t)
	text, demand := testKey(1, 'a'), verdict.Demand{
		ProjectIDs: []string{"acme"}, EnvironmentID: "live", RequiredScopes: []string{"orders:read"}, ClientIP: "192.0.2.7",
	}
	h.sessions.open(h.verifier.digester.digest(text), text, &demand, &Verification{KeyID: idOf(text)}, h.changeCount.Load(), h.by("one"))
	h.sessions.changed(false, idOf(text))
	if a := h.next(); fmt.Sprint(a.demand) != fmt.Sprint(demand) {
		t.Errorf("asked for %v", a.demand)
	}
}

func TestWhatIsToldBetweenTheVerdictAndTheStreamCounts(t *testing.T) {
	h := newHolding(t)
	since := h.changeCount.Load()
	h.deliver(h.stream, changed("a", 11, testKey(1, 'a')))
	h.eventually("it is told", func() bool { return h.changeCount.Load() > since })
	text := testKey(1, 'a')
	h.sessions.open(h.verifier.digester.digest(text), text, &verdict.Demand{},
		&Verification{KeyID: idOf(text), until: time.Minute}, since, h.by("one"))
	h.next().answer(CodeRevoked, 0)
	h.become("[one REVOKED]")
}

func TestAnAnswerThatMayBeOlderThanAnEventIsNotTheLastWord(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one")
	h.deliver(h.stream, changed("a", 11, testKey(1, 'a')))
	first, told := h.next(), h.changeCount.Load()
	h.deliver(h.stream, changed("b", 12, testKey(1, 'a')))
	h.eventually("it is told", func() bool { return h.changeCount.Load() > told })
	h.quiet(first)
	first.answer(CodeValid, time.Minute)
	h.next().answer(CodeRevoked, 0)
	h.become("[one REVOKED]")
}

func TestAKeyIsVerifiedWhenItsRecordEnds(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one")
	h.deliver(h.stream, changed("a", 11, testKey(1, 'a')))
	h.next().answer(CodeValid, h.world.clock.now()+3*time.Second)
	h.eventually("it rests", h.rests)
	h.world.clock.advance(3*time.Second - 1)
	h.quiet()
	h.world.clock.advance(1)
	h.next().answer(CodeExpired, 0)
	h.become("[one EXPIRED]")
}

func TestTrustThatLapsesHasEveryKeyVerifiedAgainAndAgain(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one")
	h.world.clock.advance(DefaultMaxStaleness)
	for range 3 {
		h.next().answer(CodeValid, h.world.clock.now()+time.Minute)
		h.eventually("it rests", h.rests)
		h.quiet()
		h.world.clock.advance(DefaultMaxStaleness)
	}
	h.next().answer(CodeRevoked, 0)
	h.become("[one REVOKED]")
}

func TestAKeyThatCannotBeVerifiedEndsItsStreamsAfterTheStalenessAllowed(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one")
	h.sessions.changed(false, idOf(testKey(1, 'a')))
	for range int(DefaultMaxStaleness / time.Second) {
		h.next().fail()
		h.eventually("it waits", func() bool { return h.world.clock.waits(retryDelay) })
		h.quiet()
		h.world.clock.advance(retryDelay)
	}
	if h.all() != "[]" {
		t.Fatal(h.all())
	}
	h.next().fail()
	h.become("[one undecided]")
}

func TestAFloodOfEventsIsFewVerificationsAtATime(t *testing.T) {
	const keys = 10_000
	h := newHolding(t)
	var ids []string
	for key := range keys {
		h.open(key, "x")
		ids = append(ids, idOf(testKey(key, 'a')))
	}
	for range 3 {
		h.sessions.changed(false, ids...)
	}
	for seen := 0; seen < keys; {
		batch := min(maxChecks, keys-seen)
		var under []*asked
		for range batch {
			under = append(under, h.next())
		}
		h.quiet(under...)
		for _, a := range under {
			a.answer(CodeRevoked, 0)
		}
		seen += batch
	}
	h.eventually("all have ended", func() bool { return h.sessions.len() == 0 })
	h.quiet()
}

func TestAResetIsSpread(t *testing.T) {
	const keys = 3_000
	h := newHolding(t)
	for key := range keys {
		h.open(key, "x")
	}
	h.sessions.changed(true)
	h.next().answer(CodeValid, time.Minute)
	h.quiet()
	seen := 1
	for seen < keys {
		h.world.clock.advance(100 * time.Millisecond)
		for range min(100, keys-seen) {
			h.next().answer(CodeValid, h.world.clock.now()+time.Minute)
			seen++
		}
		h.quiet()
	}
}

func TestNothingIsLeftOfAStream(t *testing.T) {
	h := newHolding(t)
	for key := range 500 {
		opened := h.open(key, "x")
		opened.close()
		opened.close()
	}
	h.sessions.mu.Lock()
	defer h.sessions.mu.Unlock()
	if len(h.sessions.keys)+len(h.sessions.byID)+len(h.queue) > 0 {
		t.Error("something is left")
	}
	h.world.clock.mu.Lock()
	defer h.world.clock.mu.Unlock()
	if timers := len(h.world.clock.timers); timers > 5 {
		t.Errorf("%d timers", timers)
	}
}

func TestClosingEndsAllStreams(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one")
	h.sessions.close(errClosed)
	h.open(2, "two")
	h.become("[one undecided two undecided]")
	if !errors.Is(h.sessions.closed, ErrUnavailable) {
		t.Error(h.sessions.closed)
	}
}

// A lifetime that is over when the answer arrives has a key verified once a second.
func TestAnAnswerWithoutALifetimeHasItsKeyVerifiedOnceASecond(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one")
	h.deliver(h.stream, changed("a", 11, testKey(1, 'a')))
	for range 3 {
		h.next().answer(CodeValid, h.world.clock.now())
		h.eventually("it rests", h.rests)
		h.world.clock.advance(time.Second - 1)
		h.quiet()
		h.world.clock.advance(1)
	}
	h.next().answer(CodeValid, 0)
	h.eventually("it rests", h.rests)
	h.deliver(h.stream, changed("b", 12, testKey(1, 'a'))) // an event does not wait
	h.next().answer(CodeRevoked, 0)
	h.become("[one REVOKED]")
}

// The longest lifetime is one.
func TestAnAnswerThatLivesForEverHasItsKeyLeftAlone(t *testing.T) {
	h := newHolding(t)
	h.open(1, "one")
	h.deliver(h.stream, changed("a", 11, testKey(1, 'a')))
	h.next().answer(CodeValid, always)
	h.eventually("it rests", h.rests)
	h.world.clock.advance(DefaultMaxStaleness - 1)
	h.quiet()
}
