package tumbler

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

func TestAChangeOfAKeyMakesItForgotten(t *testing.T) {
	w, stream := listening(t)
	w.verify(testKey(1, 'a'))
	w.verify(testKey(2, 'a'))
	w.deliver(stream, changed("next", 11, testKey(1, 'a')))
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
		a.Valid, a.Code, a.Revision = false, tumblerv1.VerifyCode_VERIFY_CODE_REVOKED, 11
	})
	w.expect(CodeRevoked, false, testKey(1, 'a'))
	w.expect(CodeValid, true, testKey(2, 'a'))
}

func TestAResetMakesEverythingForgotten(t *testing.T) {
	w, stream := listening(t)
	w.verify(testKey(1, 'a'))
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "elsewhere", Reset_: true})
	if w.verifier.Remembered() != 0 {
		t.Error("something is remembered")
	}
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestNothingIsRememberedBeforeTheStreamHasBegun(t *testing.T) {
	w := newWorld(t)
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAStreamAsksForTheHeartbeatAndBeginsAtNow(t *testing.T) {
	w := newWorld(t, WithHeartbeat(3*time.Second))
	request := w.stream().request
	if request.GetStartCursor() != "" || request.GetHeartbeatInterval().AsDuration() != 3*time.Second ||
		request.GetProjectId() != "" {
		t.Errorf("asked for %v", request)
	}
}

func TestABrokenStreamGoesOnWhereItWasAndNothingIsForgotten(t *testing.T) {
	w, stream := listening(t)
	w.verify(testKey(1, 'a'))
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "here"})
	w.end(stream, status.Error(codes.Unavailable, "stopping"))
	w.expect(CodeValid, true, testKey(1, 'a'))
	stream = w.stream()
	if got := stream.request.GetStartCursor(); got != "here" {
		t.Errorf("it began at %q", got)
	}
	w.deliver(stream, changed("there", 10, testKey(1, 'a')))
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAStreamThatBreaksBeforeItsFirstWordBeginsAnewAndForgets(t *testing.T) {
	w := newWorld(t)
	w.end(w.stream(), nil)
	stream := w.stream()
	if got := stream.request.GetStartCursor(); got != "" {
		t.Errorf("it began at %q", got)
	}
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "begun"})
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestAServerThatWasAwayIsFoundAgain(t *testing.T) {
	w, _ := listening(t)
	address := w.listener.Addr().String()
	w.grpc.Stop()
	w.serve(address)
	stream := w.stream()
	if got := stream.request.GetStartCursor(); got != "begun" {
		t.Errorf("it began at %q", got)
	}
}

func TestWhatIsRememberedIsNotUsedWhenTheStreamHasBeenSilentForTooLong(t *testing.T) {
	w, stream := listening(t)
	w.verify(testKey(1, 'a'))
	w.end(stream, status.Error(codes.Unavailable, "stopping"))
	w.clock.advance(DefaultMaxStaleness - 1)
	w.expect(CodeValid, true, testKey(1, 'a'))
	w.clock.advance(1)
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestWhatIsRememberedDoesNotOutliveTheServerForLong(t *testing.T) {
	w, _ := listening(t)
	w.verify(testKey(1, 'a'))
	w.grpc.Stop()
	w.clock.advance(DefaultMaxStaleness)
	if found, err := w.verifier.Verify(context.Background(), testKey(1, 'a')); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestAHeartbeatMakesWhatIsRememberedFreshAgain(t *testing.T) {
	w, stream := listening(t, WithMaxStaleness(6*time.Second))
	w.verify(testKey(1, 'a'))
	w.clock.advance(6 * time.Second)
	w.deliver(stream, heartbeat(6*time.Second))
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestTrustCountsFromTheMomentThatAHeartbeatIsTrueOf(t *testing.T) {
	w, stream := listening(t)
	w.verify(testKey(1, 'a'))
	w.clock.advance(10 * time.Second)
	w.deliver(stream, heartbeat(6*time.Second))
	w.clock.advance(11*time.Second - 1)
	w.expect(CodeValid, true, testKey(1, 'a'))
	w.clock.advance(1)
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestHeartbeatsThatCountForNothingHaveAnotherStreamOpened(t *testing.T) {
	for name, messages := range map[string][]*tumblerv1.WatchResponse{
		"as old as the staleness allowed": {heartbeat(10 * time.Second)},
		"a pile of them":                  {heartbeat(time.Second), heartbeat(10 * time.Second)},
		"an older server's, come late":    {{Cursor: "beat"}},
		"cannot have been sent yet":       {heartbeat(25*time.Second + maxHeartbeatLead + 1)},
	} {
		t.Run(name, func(t *testing.T) {
			w, stream := listening(t, WithHeartbeat(14*time.Second))
			w.verify(testKey(1, 'a'))
			w.clock.advance(25 * time.Second)
			for _, message := range messages {
				select {
				case stream.messages <- message:
				case <-stream.gone:
				}
			}
			w.gone(stream)
			w.expect(CodeValid, false, testKey(1, 'a'))
			w.deliver(w.stream(), &tumblerv1.WatchResponse{Cursor: "anew", StreamAge: durationpb.New(0)})
			w.expect(CodeValid, true, testKey(1, 'a'))
		})
	}
}

func TestAHeartbeatFromTheFutureEndsAllTrust(t *testing.T) {
	w, stream := listening(t)
	w.verify(testKey(1, 'a'))
	w.clock.advance(time.Second)
	w.deliver(stream, heartbeat(time.Second+maxHeartbeatLead))
	w.expect(CodeValid, true, testKey(1, 'a'))
	w.send(stream, heartbeat(time.Second+maxHeartbeatLead+1))
	w.gone(stream)
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAStreamWhoseHeartbeatsWouldNotLastIsOpenedAnew(t *testing.T) {
	w, stream := listening(t, WithHeartbeat(6*time.Second))
	w.verify(testKey(1, 'a'))
	w.clock.advance(10 * time.Second)
	w.deliver(stream, heartbeat(time.Second))
	w.send(stream, heartbeat(time.Second-1))
	w.gone(stream)
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestEventsAloneDoNotSayThatThereWasNothingElse(t *testing.T) {
	w, stream := listening(t, WithMaxStaleness(6*time.Second))
	w.verify(testKey(1, 'a'))
	w.clock.advance(6 * time.Second)
	w.deliver(stream, changed("catching up", 11, testKey(2, 'a')))
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAStreamThatIsSilentForTwoAndAHalfHeartbeatsIsOpenedAnew(t *testing.T) {
	w, stream := listening(t)
	w.clock.advance(12 * time.Second)
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "still there"})
	w.clock.advance(12 * time.Second)
	select {
	case <-stream.gone:
		t.Fatal("it was given up too early")
	default:
	}
	w.clock.advance(500 * time.Millisecond)
	w.gone(stream)
	if got := w.stream().request.GetStartCursor(); got != "still there" {
		t.Errorf("it began at %q", got)
	}
}

func TestAnOwnKeyThatIsRefusedMakesEverythingForgottenAndIsTriedAgain(t *testing.T) {
	for _, code := range []codes.Code{codes.Unauthenticated, codes.PermissionDenied} {
		t.Run(code.String(), func(t *testing.T) {
			w, stream := listening(t)
			w.verify(testKey(1, 'a'))
			w.end(stream, status.Error(code, "no"))
			w.eventually("everything is forgotten", func() bool { return w.verifier.Remembered() == 0 })
			w.expect(CodeValid, false, testKey(1, 'a'))
			w.expect(CodeValid, false, testKey(1, 'a'))
			w.eventually("it pauses", func() bool { return w.clock.waits(refusedBackoff) })
			w.clock.advance(refusedBackoff)
			w.deliver(w.stream(), &tumblerv1.WatchResponse{Cursor: "allowed again"})
			w.expect(CodeValid, false, testKey(1, 'a'))
			w.expect(CodeValid, true, testKey(1, 'a'))
			if !strings.Contains(w.logs.String(), "level=ERROR") {
				t.Errorf("nothing was logged: %s", w.logs)
			}
		})
	}
}

func TestACursorThatTheServerDoesNotKnowIsDroppedAndEverythingForgotten(t *testing.T) {
	w, stream := listening(t)
	w.verify(testKey(1, 'a'))
	w.end(stream, status.Error(codes.Unavailable, "stopping"))
	w.end(w.stream(), status.Error(codes.InvalidArgument, "start_cursor"))
	stream = w.stream()
	if got := stream.request.GetStartCursor(); got != "" {
		t.Errorf("it began at %q", got)
	}
	if w.verifier.Remembered() != 0 {
		t.Error("something is remembered")
	}
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "anew"})
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestACursorThatVerifyDoesNotKnowFailsNobody(t *testing.T) {
	w, _ := listening(t)
	w.verify(testKey(1, 'a'))
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		if request.GetConsistency() != nil {
			return nil, status.Error(codes.InvalidArgument, "consistency.at_least_as_fresh")
		}
		return goodAnswer(request), nil
	})
	w.expect(CodeValid, false, testKey(2, 'a'))
	if w.verifier.Remembered() != 0 {
		t.Error("something of another history is remembered")
	}
}

func TestAnAnswerToACallWithoutTheCursorIsNotRemembered(t *testing.T) {
	w, stream := listening(t)
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		if request.GetConsistency() == nil {
			return goodAnswer(request), nil
		}
		w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "already elsewhere"})
		return nil, status.Error(codes.InvalidArgument, "consistency.at_least_as_fresh")
	})
	w.expect(CodeValid, false, testKey(1, 'a'))
	if w.verifier.Remembered() != 0 {
		t.Error("it is remembered")
	}
}

func TestThePauseBetweenStreamsDoublesAndIsRandom(t *testing.T) {
	w := &watcher{}
	broken := status.Error(codes.Unavailable, "stopping")
	for failures, most := range map[int]time.Duration{
		0: 100 * time.Millisecond, 1: 200 * time.Millisecond, 5: 3200 * time.Millisecond, 6: 5 * time.Second, 1000: 5 * time.Second,
	} {
		longest, seen := time.Duration(0), map[time.Duration]bool{}
		for range 200 {
			d := w.backoff(broken, failures)
			longest, seen[d] = max(longest, d), true
			if d <= 0 {
				t.Fatalf("a pause of %v", d)
			}
		}
		if longest > most || longest < most/2 || len(seen) < 100 {
			t.Errorf("after %d failures: at most %v, want up to %v", failures, longest, most)
		}
	}
}

// verifyMeanwhile verifies a key, and runs a function while that call is in flight.
func (w *world) verifyMeanwhile(key string, meanwhile func()) {
	w.Helper()
	before, _ := w.server.calls()
	release := w.holdAnswers()
	back := w.start(key)
	w.eventually("it is asked for", func() bool { now, _ := w.server.calls(); return now > before })
	meanwhile()
	release()
	if r := w.await(back); r.err != nil {
		w.Fatal(r.err)
	}
}

func TestAnAnswerOlderThanAChangeOfTheKeyIsNotRemembered(t *testing.T) {
	w, stream := listening(t)
	w.verifyMeanwhile(testKey(1, 'a'), func() { w.deliver(stream, changed("next", 11, testKey(1, 'a'))) })
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) { a.Revision = 11 })
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAnAnswerThatHoldsTheChangeOfTheKeyIsRemembered(t *testing.T) {
	w, stream := listening(t)
	w.verifyMeanwhile(testKey(1, 'a'), func() { w.deliver(stream, changed("next", 10, testKey(1, 'a'))) })
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestAChangeOfAnotherKeyIsNoReasonNotToRemember(t *testing.T) {
	w, stream := listening(t)
	w.verifyMeanwhile(testKey(1, 'a'), func() { w.deliver(stream, changed("next", 11, testKey(2, 'a'))) })
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestAnAnswerOlderThanTheChangesThatAreKeptIsNotRemembered(t *testing.T) {
	w, stream := listening(t)
	others := make([]string, maxChanges)
	for place := range others {
		others[place] = testKey(place+100, 'a')
	}
	w.verifyMeanwhile(testKey(1, 'a'), func() { w.deliver(stream, changed("many", 11, others...)) })
	w.expect(CodeValid, true, testKey(1, 'a'))
	w.verifyMeanwhile(testKey(2, 'a'), func() { w.deliver(stream, changed("one more", 11+maxChanges, others[0])) })
	w.expect(CodeValid, false, testKey(2, 'a'))
}

func TestAnAnswerToACallThatBeganBeforeAResetIsNotRemembered(t *testing.T) {
	w, stream := listening(t)
	w.verifyMeanwhile(testKey(1, 'a'), func() {
		w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "elsewhere", Reset_: true})
		w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "beat"})
	})
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAnAnswerToACallThatBeganBeforeTheStreamIsNotRemembered(t *testing.T) {
	w := newWorld(t)
	stream := w.stream()
	w.verifyMeanwhile(testKey(1, 'a'), func() { w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "begun"}) })
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestTheTimeThatACallTakesIsPartOfTheLifetime(t *testing.T) {
	w, stream := listening(t, WithMaxStaleness(time.Minute))
	w.verifyMeanwhile(testKey(1, 'a'), func() {
		for second := range 59 {
			w.clock.advance(time.Second)
			w.deliver(stream, &tumblerv1.WatchResponse{Cursor: strconv.Itoa(second)})
		}
	})
	w.expect(CodeValid, true, testKey(1, 'a'))
	w.clock.advance(time.Second)
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestTheChangesThatAreKeptAreTheLatest(t *testing.T) {
	kept := newChanges()
	id := func(revision int64) string { return strconv.FormatInt(revision%10, 10) }
	for revision := range int64(3 * maxChanges) {
		kept.note(id(revision), revision)
	}
	if len(kept.revisions) != 10 || kept.revisionFloor != 2*maxChanges-1 {
		t.Errorf("%d keys are kept, and %d dropped", len(kept.revisions), kept.revisionFloor)
	}
	if newest := int64(3*maxChanges - 1); kept.after(id(newest), newest) || !kept.after(id(newest), newest-1) {
		t.Error("the newest revision of a key is not what counts")
	}
}

// An answer that lacks an event delivered before the call was sent is no answer to that call.
func TestAnAnswerOlderThanAnEventBeforeTheCallDecidesNothing(t *testing.T) {
	for _, code := range []Code{CodeValid, CodeRevoked, CodeInsufficientScope} {
		w, stream := listening(t)
		answered := func(revision int64) {
			w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
				setCode(a, tumblerv1.VerifyCode(code))
				a.Revision = revision
			})
		}
		w.deliver(stream, changed("a", 100, testKey(1, 'a')))
		w.deliver(stream, changed("b", 50, testKey(1, 'a'))) // the highest counts
		for _, revision := range []int64{99, 50, 0, -1} {
			answered(revision)
			if found, err := w.verifier.Verify(context.Background(), testKey(1, 'a'), readOrders); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v of revision %d: got %v, %v", code, revision, found, err)
			}
			if w.verifier.Remembered() != 0 {
				t.Error("it is remembered")
			}
		}
		w.expect(code, false, testKey(2, 'a'), readOrders) // no event named this key
		answered(100)
		w.expect(code, false, testKey(1, 'a'), readOrders)
	}
}

// A batch is held to the events before it, too.
func TestAnAnswerInABatchThatIsOlderThanAnEventDecidesNothing(t *testing.T) {
	w, stream := listening(t)
	w.deliver(stream, changed("a", 100, testKey(1, 'a')))
	release := w.occupy()
	stale, good := w.start(testKey(1, 'a')), w.start(testKey(2, 'a'))
	w.queued(2)
	release()
	if r := w.await(stale); !errors.Is(r.err, ErrUnavailable) {
		t.Errorf("got %v, %v", r.found, r.err)
	}
	if r := w.await(good); r.err != nil || !r.found.Valid {
		t.Errorf("got %v, %v", r.found, r.err)
	}
}

func TestAResetForgetsTheRevisions(t *testing.T) {
	w, stream := listening(t)
	w.deliver(stream, changed("a", 100, testKey(1, 'a')))
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "elsewhere", Reset_: true})
	w.expect(CodeValid, false, testKey(1, 'a'))

	w.deliver(stream, changed("b", 100, testKey(1, 'a')))
	w.verifyMeanwhile(testKey(1, 'a'), func() {
		w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "elsewhere again", Reset_: true})
	})
}

// Ages that cannot be, however absurd, end freshness and the stream.
func TestAnAbsurdStreamAgeEndsAllTrust(t *testing.T) {
	for name, age := range map[string]*durationpb.Duration{
		"the longest":      {Seconds: math.MaxInt64, Nanos: math.MaxInt32},
		"10,000 years":     {Seconds: 315_576_000_000},
		"292 years":        durationpb.New(math.MaxInt64),
		"the shortest":     {Seconds: math.MinInt64, Nanos: math.MinInt32},
		"-292 years":       durationpb.New(math.MinInt64),
		"a bit negative":   {Nanos: -1},
		"nanos, negative":  {Nanos: math.MinInt32},
		"beyond the limit": durationpb.New(time.Second + maxHeartbeatLead + 1),
	} {
		t.Run(name, func(t *testing.T) {
			w, stream := listening(t)
			w.verify(testKey(1, 'a'))
			w.clock.advance(time.Second)
			w.send(stream, &tumblerv1.WatchResponse{Cursor: "beat", StreamAge: age})
			w.gone(stream)
			w.expect(CodeValid, false, testKey(1, 'a'))
			w.deliver(w.stream(), &tumblerv1.WatchResponse{Cursor: "anew", StreamAge: durationpb.New(0)})
			w.expect(CodeValid, true, testKey(1, 'a'))
		})
	}
}

// No event is missed because a message had no cursor.
func TestAMessageWithoutACursorKeepsTheCursor(t *testing.T) {
	for name, message := range map[string]*tumblerv1.WatchResponse{
		"a heartbeat": {},
		"an event":    changed("", 11, testKey(2, 'a')),
	} {
		t.Run(name, func(t *testing.T) {
			w, stream := listening(t)
			w.verify(testKey(1, 'a'))
			w.send(stream, message)
			w.end(stream, status.Error(codes.Unavailable, "stopping"))
			if got := w.stream().request.GetStartCursor(); got != "begun" {
				t.Errorf("it began at %q", got)
			}
			w.expect(CodeValid, true, testKey(1, 'a'))
		})
	}
}

func TestNothingIsRememberedBeforeThereIsACursor(t *testing.T) {
	w := newWorld(t)
	stream := w.stream()
	w.send(stream, &tumblerv1.WatchResponse{})
	w.eventually("the heartbeat is handled", w.verifier.cache.isFreshNow)
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "begun"})
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, true, testKey(1, 'a'))
}
