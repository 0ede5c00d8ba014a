package tumbler

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// result is the result of a Verify in the background.
type result struct {
	found *Verification
	err   error
}

func (w *world) start(key string, options ...VerifyOption) <-chan result {
	results := make(chan result, 1)
	go func() {
		found, err := w.verifier.Verify(context.Background(), key, options...)
		results <- result{found, err}
	}()
	return results
}

// await returns the result of a Verify in the background.
func (w *world) await(one <-chan result) result {
	w.Helper()
	select {
	case r := <-one:
		return r
	case <-time.After(patience):
		w.Fatal("a Verify never returned")
		return result{}
	}
}

// eager waits until this many callers wait for a key's flight.
func (w *world) eager(key string, callers int) {
	w.Helper()
	w.eventually("the callers wait", func() bool {
		w.verifier.batcher.mu.Lock()
		defer w.verifier.batcher.mu.Unlock()
		f := w.verifier.batcher.joinable[idOf(key)]
		return f != nil && f.waiters == callers
	})
}

// occupy starts the maximum number of calls, which stay in flight until release is called.
func (w *world) occupy() (release func()) {
	w.Helper()
	release = w.holdAnswers()
	for place := range maxCallsInFlight {
		w.start(testKey(9000+place, 'a'))
	}
	w.eventually("all calls are under way", func() bool { singles, _ := w.server.calls(); return singles == maxCallsInFlight })
	return release
}

func (w *world) queued(questions int) {
	w.Helper()
	w.eventually("the others wait", func() bool {
		w.verifier.batcher.mu.Lock()
		defer w.verifier.batcher.mu.Unlock()
		return len(w.verifier.batcher.queue) == questions
	})
}

func TestManyWhoWantTheSameKeyShareOneCall(t *testing.T) {
	w, _ := listening(t)
	release := w.holdAnswers()
	var all []<-chan result
	for range 20 {
		all = append(all, w.start(testKey(1, 'a')))
	}
	w.eager(testKey(1, 'a'), 20)
	release()
	for _, one := range all {
		if r := w.await(one); r.err != nil || !r.found.Valid || r.found.Cached {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
	if singles, batches := w.server.calls(); singles != 1 || batches != 0 {
		t.Errorf("%d and %d calls", singles, batches)
	}
}

// Without a stream the Verifier would miss a revocation of the key in between.
func TestWithoutAStreamNobodyJoinsACallThatWasSent(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	release := w.holdAnswers()
	before := w.start(testKey(1, 'a'))
	w.eventually("it is asked for", func() bool { singles, _ := w.server.calls(); return singles == 1 })
	after := w.start(testKey(1, 'a'))
	w.eventually("it is asked for again", func() bool { singles, _ := w.server.calls(); return singles == 2 })
	release()
	for _, one := range []<-chan result{before, after} {
		if r := w.await(one); r.err != nil || !r.found.Valid {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
}

func TestWhoSharesACallIsJudgedByOnesOwnDemand(t *testing.T) {
	w, _ := listening(t)
	release := w.holdAnswers()
	first := w.start(testKey(1, 'a'), readOrders)
	w.eager(testKey(1, 'a'), 1)
	more := w.start(testKey(1, 'a'), RequireScopes("orders:write"))
	elsewhere := w.start(testKey(1, 'a'), Environment("test"))
	w.eager(testKey(1, 'a'), 3)
	release()
	for _, c := range []struct {
		got  result
		want Code
	}{{w.await(first), CodeValid}, {w.await(more), CodeInsufficientScope}, {w.await(elsewhere), CodeEnvironmentMismatch}} {
		if c.got.err != nil || c.got.found.Code != c.want || c.got.found.Valid != (c.want == CodeValid) {
			t.Errorf("got %+v, %v, want %v", c.got.found, c.got.err, c.want)
		}
	}
	if singles, _ := w.server.calls(); singles != 1 {
		t.Errorf("%d calls", singles)
	}
}

func TestADemandOfTheWrongFormFailsOnlyWhoMadeIt(t *testing.T) {
	w, _ := listening(t)
	held := make(chan struct{})
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		<-held
		if request.GetClientIp() == "nonsense" {
			return nil, status.Error(codes.InvalidArgument, "client_ip")
		}
		return goodAnswer(request), nil
	})
	wrong := w.start(testKey(1, 'a'), ClientIP("nonsense"))
	w.eager(testKey(1, 'a'), 1)
	right := w.start(testKey(1, 'a'))
	wrongToo := w.start(testKey(1, 'a'), ClientIP("nonsense"))
	w.eager(testKey(1, 'a'), 3)
	close(held)
	for _, one := range []<-chan result{wrong, wrongToo} {
		if r := w.await(one); !errors.Is(r.err, ErrInvalidRequest) {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
	if r := w.await(right); r.err != nil || !r.found.Valid {
		t.Errorf("got %+v, %v", r.found, r.err)
	}
}

func TestAnotherSecretForTheSameIdSharesNoCall(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	held := make(chan struct{})
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		<-held
		if request.GetKey() == testKey(1, 'a') {
			return goodAnswer(request), nil
		}
		return &tumblerv1.VerifyResponse{Code: tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND}, nil
	})
	wrong := w.start(testKey(1, 'b'))
	w.eager(testKey(1, 'b'), 1)
	right := w.start(testKey(1, 'a'))
	w.eventually("both are asked for", func() bool { singles, _ := w.server.calls(); return singles == 2 })
	close(held)
	if r := w.await(wrong); r.err != nil || r.found.Code != CodeNotFound {
		t.Errorf("got %+v, %v", r.found, r.err)
	}
	if r := w.await(right); r.err != nil || !r.found.Valid {
		t.Errorf("got %+v, %v", r.found, r.err)
	}
}

func TestWhoComesAfterAChangeDoesNotShareACallThatBeganBefore(t *testing.T) {
	for name, change := range map[string]func(*world, *fakeStream){
		"of the key": func(w *world, s *fakeStream) { w.deliver(s, changed("next", 11, testKey(1, 'a'))) },
		"of everything": func(w *world, s *fakeStream) {
			w.deliver(s, &tumblerv1.WatchResponse{Cursor: "next", Reset_: true})
		},
		"of the own key": func(w *world, s *fakeStream) { w.end(s, status.Error(codes.Unauthenticated, "no")) },
		"of the history": func(w *world, s *fakeStream) {
			w.end(s, nil)
			w.end(w.stream(), status.Error(codes.InvalidArgument, "start_cursor"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, stream := listening(t)
			held := make(chan struct{})
			var revoked atomic.Bool
			w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
				if revoked.Load() {
					return &tumblerv1.VerifyResponse{Code: tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND}, nil
				}
				<-held
				return goodAnswer(request), nil
			})
			before := w.start(testKey(1, 'a'))
			w.eventually("it is asked for", func() bool { singles, _ := w.server.calls(); return singles == 1 })
			revoked.Store(true)
			change(w, stream)
			w.eventually("the call is not shared", func() bool {
				w.verifier.batcher.mu.Lock()
				defer w.verifier.batcher.mu.Unlock()
				return len(w.verifier.batcher.joinable) == 0
			})
			w.expect(CodeNotFound, false, testKey(1, 'a'))
			close(held)
			<-before
		})
	}
}

func TestWhatIsWantedWhileFourCallsAreUnderWayGoesOutTogether(t *testing.T) {
	w, _ := listening(t)
	release := w.occupy()
	var all []<-chan result
	for place := range 30 {
		all = append(all, w.start(testKey(place, 'a'), readOrders))
	}
	w.queued(30)
	release()
	for place, one := range all {
		if r := w.await(one); r.err != nil || !r.found.Valid || r.found.KeyID != idOf(testKey(place, 'a')) {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
	if singles, batches := w.server.calls(); singles != maxCallsInFlight || batches != 1 {
		t.Errorf("%d single calls and %d for several", singles, batches)
	}
	item := w.server.batches[0].GetRequests()[0]
	if item.GetConsistency().GetAtLeastAsFresh() != "begun" || item.GetRequiredScopes()[0] != "orders:read" {
		t.Error("an item does not say what is demanded")
	}
	w.expect(CodeValid, true, testKey(7, 'a'))
}

func TestNoMoreThanFiveHundredGoOutTogether(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	release := w.occupy()
	var all []<-chan result
	for place := range 2*maxBatchKeys + 100 {
		all = append(all, w.start(testKey(place, 'a')))
	}
	w.queued(2*maxBatchKeys + 100)
	release()
	for _, one := range all {
		if r := w.await(one); r.err != nil || !r.found.Valid {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
	for _, batch := range w.server.batches {
		if size := len(batch.GetRequests()); size > maxBatchKeys {
			t.Errorf("%d went together", size)
		}
	}
	if _, batches := w.server.calls(); batches != 3 {
		t.Errorf("%d calls", batches)
	}
}

func TestWhatABatchLeavesUndecidedIsAskedAloneAndFailsNoOther(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	release := w.occupy()
	wrong := []<-chan result{w.start(testKey(1, 'a'), ClientIP("nonsense")), w.start(testKey(2, 'a'), ClientIP("nonsense"))}
	right := w.start(testKey(3, 'a'))
	w.queued(3)
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		if request.GetClientIp() == "nonsense" {
			return nil, status.Error(codes.InvalidArgument, "client_ip")
		}
		return goodAnswer(request), nil
	})
	release()
	for _, one := range wrong {
		if r := w.await(one); !errors.Is(r.err, ErrInvalidRequest) {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
	if r := w.await(right); r.err != nil || !r.found.Valid {
		t.Errorf("got %+v, %v", r.found, r.err)
	}
}

func TestABatchThatFailsIsHalvedAndOnlyTheItemAtFaultFails(t *testing.T) {
	bad := testKey(37, 'a')
	for _, code := range []codes.Code{
		codes.ResourceExhausted, codes.InvalidArgument, codes.Internal, codes.Unknown, codes.Unimplemented,
	} {
		t.Run(code.String(), func(t *testing.T) {
			w := newWorld(t, WithoutWatch())
			w.server.refuse = func(request *tumblerv1.BatchVerifyRequest) error {
				for _, item := range request.GetRequests() {
					if item.GetKey() == bad {
						return status.Error(code, "too much")
					}
				}
				return nil
			}
			release := w.occupy()
			var all []<-chan result
			for place := range 100 {
				all = append(all, w.start(testKey(place, 'a')))
			}
			w.queued(100)
			w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
				if request.GetKey() == bad {
					return nil, status.Error(code, "too much")
				}
				return goodAnswer(request), nil
			})
			release()
			for place, one := range all {
				r := w.await(one)
				if place == 37 {
					if r.err == nil || status.Code(r.err) != code {
						t.Errorf("got %+v, %v", r.found, r.err)
					}
				} else if r.err != nil || !r.found.Valid {
					t.Errorf("%d: got %+v, %v", place, r.found, r.err)
				}
			}
			asked := 0
			for _, batch := range w.server.batches {
				for _, item := range batch.GetRequests() {
					if item.GetKey() == bad {
						asked++
					}
				}
			}
			if asked > 7 {
				t.Errorf("it was asked for in %d batches", asked)
			}
		})
	}
}

func TestABatchThatHalfOfItWouldNotMendFailsAtOnce(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.DeadlineExceeded: ErrUnavailable, codes.Unauthenticated: ErrNotAllowed, codes.PermissionDenied: ErrNotAllowed,
	} {
		t.Run(code.String(), func(t *testing.T) {
			w := newWorld(t, WithoutWatch())
			w.server.refuse = func(*tumblerv1.BatchVerifyRequest) error { return status.Error(code, "as the test has it") }
			release := w.occupy()
			all := []<-chan result{w.start(testKey(1, 'a')), w.start(testKey(2, 'a'))}
			w.queued(2)
			release()
			for _, one := range all {
				if r := w.await(one); !errors.Is(r.err, want) {
					t.Errorf("got %+v, %v", r.found, r.err)
				}
			}
			if _, batches := w.server.calls(); batches != 1 {
				t.Errorf("%d calls", batches)
			}
		})
	}
}

func TestWhatAnAnswerHasNoRoomForIsAskedAgain(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	release := w.occupy()
	var all []<-chan result
	for place := range 100 {
		all = append(all, w.start(testKey(place, 'a')))
	}
	w.queued(100)
	var room atomic.Int32
	w.server.refuse = func(*tumblerv1.BatchVerifyRequest) error { room.Store(30); return nil }
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		if room.Add(-1) < 0 {
			return &tumblerv1.VerifyResponse{}, nil
		}
		return goodAnswer(request), nil
	})
	release()
	for _, one := range all {
		if r := w.await(one); r.err != nil || !r.found.Valid {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
	var sizes []int
	for _, batch := range w.server.batches {
		sizes = append(sizes, len(batch.GetRequests()))
	}
	slices.Sort(sizes) // the two halves are sent concurrently
	if !slices.Equal(sizes, []int{20, 20, 50, 100}) {
		t.Errorf("the calls were for %v", sizes)
	}
}

func TestABatchIsBoundedInBytes(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	release := w.occupy()
	var all []<-chan result
	for place := range 20 {
		all = append(all, w.start(testKey(place, 'a'), ClientIP(strings.Repeat("1", 40_000))))
	}
	all = append(all, w.start(testKey(20, 'a'), ClientIP(strings.Repeat("1", 300_000))))
	w.queued(21)
	release()
	for _, one := range all {
		if r := w.await(one); r.err != nil {
			t.Error(r.err)
		}
	}
	for _, batch := range w.server.batches {
		if size := proto.Size(batch); size > maxBatchBytes {
			t.Errorf("%d bytes went together", size)
		}
	}
	if _, batches := w.server.calls(); batches < 3 { // six fit into a batch; the rest may go one by one
		t.Errorf("%d calls for several", batches)
	}
}

func TestAnAnswerMayBeLargerThanGRPCWouldHaveIt(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	w.server.answerWith(func(response *tumblerv1.VerifyResponse) { response.Name = strings.Repeat("n", 15<<20) })
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.server.answerWith(func(response *tumblerv1.VerifyResponse) { response.Name = strings.Repeat("n", 17<<20) })
	if _, err := w.verifier.Verify(context.Background(), testKey(2, 'a')); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestWhatNobodyWaitsForAnyMoreIsNotAsked(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	release := w.occupy()
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if found, err := w.verifier.Verify(ctx, testKey(1, 'a')); !errors.Is(err, context.Canceled) {
			t.Errorf("got %+v, %v", found, err)
		}
	}()
	w.queued(1)
	cancel()
	<-gone
	release()
	w.queued(0)
	w.verify(testKey(2, 'a'))
	for _, request := range w.server.singles {
		if request.GetKey() == testKey(1, 'a') {
			t.Error("it was asked for")
		}
	}
}

func TestEverybodyVerifiesAtOnceWhileEverythingChanges(t *testing.T) {
	w, stream := listening(t, WithCacheSize(50))
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) { a.Revision = 1000 })
	var callers sync.WaitGroup
	for caller := range 32 {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for step := range 200 {
				key := testKey((caller+step)%100, 'a')
				found, err := w.verifier.Verify(context.Background(), key, readOrders)
				if err != nil || !found.Valid || found.KeyID != idOf(key) {
					t.Errorf("got %+v, %v", found, err)
				}
			}
		}()
	}
	for step := range 200 {
		w.send(stream, changed(strconv.Itoa(step), int64(11+step), testKey(step%100, 'a')))
	}
	callers.Wait()
	if size := w.verifier.Remembered(); size > 50 {
		t.Errorf("%d are remembered", size)
	}
}
