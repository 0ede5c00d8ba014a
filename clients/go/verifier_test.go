package tumbler

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
	"tumbler.dev/go/internal/verdict"
)

var readOrders = RequireScopes("orders:read")

func TestAKeyThatWasSeenIsVerifiedWithoutACall(t *testing.T) {
	w, _ := listening(t)
	key := testKey(1, 'a')
	w.expect(CodeValid, false, key, readOrders)
	w.expect(CodeValid, true, key, readOrders)
	if singles, _ := w.server.calls(); singles != 1 {
		t.Errorf("%d calls", singles)
	}
}

func TestAVerificationTellsAllThatTheServerTold(t *testing.T) {
	w, _ := listening(t)
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
		a.ExpireTime = timestamppb.New(testTime.Add(time.Hour))
	})
	for _, cached := range []bool{false, true} {
		found := *w.verify(testKey(1, 'a'))
		found.until = 0 // only for the guards
		got := fmt.Sprintf("%+v", found)
		want := fmt.Sprintf("%+v", Verification{
			Valid: true, Code: CodeValid, KeyID: "0000000000000001", ProjectID: "acme", EnvironmentID: "live",
			OwnerID: "an owner", Name: "a name", Scopes: []string{"orders:read"},
			Metadata: map[string]string{"plan": "pro"}, ExpireTime: testTime.Add(time.Hour), Cached: cached,
		})
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestWhatIsRememberedIsDecidedAnewEachTime(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*tumblerv1.VerifyResponse)
		later  time.Duration
		ask    VerifyOption
		want   Code
	}{
		"within its time": {
			func(a *tumblerv1.VerifyResponse) { a.ExpireTime = timestamppb.New(testTime.Add(5 * time.Second)) },
			5*time.Second - time.Microsecond, readOrders, CodeValid,
		},
		"expired": {
			func(a *tumblerv1.VerifyResponse) { a.ExpireTime = timestamppb.New(testTime.Add(5 * time.Second)) },
			5 * time.Second, readOrders, CodeExpired,
		},
		"at the end of its grace": {
			func(a *tumblerv1.VerifyResponse) { a.GraceExpireTime = timestamppb.New(testTime.Add(5 * time.Second)) },
			5 * time.Second, readOrders, CodeSuperseded,
		},
		"for a scope that it lacks": {
			func(*tumblerv1.VerifyResponse) {}, 0, RequireScopes("orders:write"), CodeInsufficientScope,
		},
		"for one of two scopes": {
			func(*tumblerv1.VerifyResponse) {}, 0, RequireScopes("orders:read", "orders:write"), CodeInsufficientScope,
		},
		"in its environment": {
			func(*tumblerv1.VerifyResponse) {}, 0, Environment("live"), CodeValid,
		},
		"in another environment": {
			func(*tumblerv1.VerifyResponse) {}, 0, Environment("test"), CodeEnvironmentMismatch,
		},
		"from its network": {
			func(a *tumblerv1.VerifyResponse) { a.AllowedCidrs = []string{"192.0.2.0/24"} }, 0, ClientIP("192.0.2.7"), CodeValid,
		},
		"from elsewhere": {
			func(a *tumblerv1.VerifyResponse) { a.AllowedCidrs = []string{"192.0.2.0/24"} }, 0, ClientIP("203.0.113.9"), CodeIPNotAllowed,
		},
		"from nobody knows where": {
			func(a *tumblerv1.VerifyResponse) { a.AllowedCidrs = []string{"192.0.2.0/24"} }, 0, readOrders, CodeIPNotAllowed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := listening(t)
			w.server.answerWith(c.change)
			w.verify(testKey(1, 'a'), ClientIP("192.0.2.7"))
			w.clock.advance(c.later)
			w.expect(c.want, true, testKey(1, 'a'), c.ask)
		})
	}
}

func TestOptionsOfAKindAddUp(t *testing.T) {
	w, _ := listening(t)
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) { setCode(a, tumblerv1.VerifyCode_VERIFY_CODE_INSUFFICIENT_SCOPE) })
	all := []VerifyOption{readOrders, Environment("live"), ClientIP("192.0.2.7"), RequireScopes("a:b")}
	w.expect(CodeInsufficientScope, false, testKey(1, 'a'), all...)
	request := w.server.lastRequest()
	got := fmt.Sprintln(request.GetRequiredScopes(), request.GetEnvironmentId(), request.GetClientIp())
	if want := "[orders:read a:b] live 192.0.2.7\n"; got != want {
		t.Errorf("the server was asked for %s, want %s", got, want)
	}
	w.expect(CodeInsufficientScope, true, testKey(1, 'a'), readOrders, RequireScopes("a:b"))
}

func TestAWrongSecretForARememberedKeyIsDeniedWithoutACall(t *testing.T) {
	w, _ := listening(t)
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeNotFound, true, testKey(1, 'b'))
	w.expect(CodeValid, true, testKey(1, 'a'))
	if found := w.verify(testKey(1, 'b')); found.KeyID != "" || found.Scopes != nil {
		t.Errorf("it tells of the key: %+v", found)
	}
	if singles, _ := w.server.calls(); singles != 1 {
		t.Errorf("%d calls", singles)
	}
}

func TestWhatIsNoKeyIsMalformedWithoutACall(t *testing.T) {
	w, _ := listening(t)
	good := testKey(1, 'a')
	w.expect(CodeValid, false, good)
	for _, key := range []string{
		"", "x", good[:69], good + "0", strings.Repeat("a", 1_000_000), good[:69] + "!", testKey(2, 'a')[:69] + "-",
		good[:30] + "b" + good[31:], "Bearer " + good,
	} {
		w.expect(CodeMalformed, false, key)
	}
	if singles, batches := w.server.calls(); singles+batches != 1 {
		t.Errorf("%d calls", singles+batches)
	}
}

func TestARecordIsNotRememberedPastItsTimeToLive(t *testing.T) {
	w, stream := listening(t)
	w.expect(CodeValid, false, testKey(1, 'a'))
	for second := range 59 {
		w.clock.advance(time.Second)
		w.deliver(stream, &tumblerv1.WatchResponse{Cursor: strconv.Itoa(second)})
	}
	w.expect(CodeValid, true, testKey(1, 'a'))
	w.clock.advance(time.Second)
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestOnlyKeysThatAreGoodForSomethingAreRemembered(t *testing.T) {
	for code, remembered := range map[Code]bool{
		CodeValid: true, CodeMalformed: false, CodeNotFound: false, CodeRevoked: false, CodeSuperseded: false,
		CodeInactive: false, CodeExpired: false, CodeEnvironmentMismatch: true, CodeIPNotAllowed: true,
		CodeInsufficientScope: true,
	} {
		t.Run(code.String(), func(t *testing.T) {
			w, _ := listening(t)
			w.server.answerWith(func(a *tumblerv1.VerifyResponse) { setCode(a, tumblerv1.VerifyCode(code)) })
			w.expect(code, false, testKey(1, 'a'), readOrders, Environment("live"))
			if got := w.verifier.Remembered() == 1; got != remembered {
				t.Errorf("remembered: %v", got)
			}
		})
	}
}

func TestARecordWithoutATimeToLiveIsNotRemembered(t *testing.T) {
	w, _ := listening(t)
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) { a.CacheTtl = nil })
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAnAnswerThatContradictsItselfIsUnavailable(t *testing.T) {
	for name, change := range map[string]func(*tumblerv1.VerifyResponse){
		"valid without its code": func(a *tumblerv1.VerifyResponse) { a.Code = tumblerv1.VerifyCode_VERIFY_CODE_EXPIRED },
		"the code without valid": func(a *tumblerv1.VerifyResponse) { a.Valid = false },
		"another key's":          func(a *tumblerv1.VerifyResponse) { a.KeyId = "0000000000000002" },
		"of no time":             func(a *tumblerv1.VerifyResponse) { a.CheckTime = nil },
		"of nothing": func(a *tumblerv1.VerifyResponse) {
			a.Valid, a.Code = false, tumblerv1.VerifyCode_VERIFY_CODE_UNSPECIFIED
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := listening(t)
			w.server.answerWith(change)
			found, err := w.verifier.Verify(context.Background(), testKey(1, 'a'))
			if found != nil || !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v, %v", found, err)
			}
			if w.verifier.Remembered() != 0 {
				t.Error("it is remembered")
			}
		})
	}
}

func TestWhatTheServerHasDeniedIsNotRememberedAnyLonger(t *testing.T) {
	for _, code := range []Code{CodeRevoked, CodeInactive, CodeExpired, CodeNotFound} {
		w, _ := listening(t, WithHeartbeat(14*time.Second))
		w.verify(testKey(1, 'a'))
		w.clock.advance(DefaultMaxStaleness)
		w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
			a.Valid, a.Code = false, tumblerv1.VerifyCode(code)
		})
		w.expect(code, false, testKey(1, 'a'))
		if w.verifier.Remembered() != 0 {
			t.Errorf("%v: it is remembered still", code)
		}
	}
}

func TestAWrongSecretThatTheServerDeniesCostsTheKeyNothing(t *testing.T) {
	w, _ := listening(t, WithHeartbeat(14*time.Second))
	w.verify(testKey(1, 'a'))
	w.clock.advance(DefaultMaxStaleness)
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
		a.Valid, a.Code = false, tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND
	})
	w.expect(CodeNotFound, false, testKey(1, 'b'))
	if w.verifier.Remembered() != 1 {
		t.Error("it is forgotten")
	}
}

func TestACodeOfALaterServerDenies(t *testing.T) {
	w, _ := listening(t)
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) { a.Code, a.Valid = 77, false })
	w.expect(Code(77), false, testKey(1, 'a'))
	w.expect(Code(77), false, testKey(1, 'a'))
}

func TestTheKeyUsedLongestAgoIsForgottenFirst(t *testing.T) {
	w, _ := listening(t, WithCacheSize(3))
	for id := range 3 {
		w.verify(testKey(id, 'a'))
	}
	w.expect(CodeValid, true, testKey(0, 'a'))
	w.verify(testKey(3, 'a'))
	if size := w.verifier.Remembered(); size != 3 {
		t.Errorf("%d are remembered", size)
	}
	w.expect(CodeValid, true, testKey(0, 'a'))
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestRecordsAreForgottenWhereTheirBytesHaveNoRoom(t *testing.T) {
	named := func(length int) func(*tumblerv1.VerifyResponse) {
		return func(response *tumblerv1.VerifyResponse) { response.Name = strings.Repeat("n", length) }
	}
	w, stream := listening(t, WithCacheBytes(3*(1000+200+entryBytes)))
	w.server.answerWith(named(1000))
	for id := range 3 {
		w.verify(testKey(id, 'a'))
	}
	w.expect(CodeValid, true, testKey(0, 'a'))
	w.verify(testKey(3, 'a'))
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, true, testKey(0, 'a'))
	if size := w.verifier.Remembered(); size != 3 {
		t.Errorf("%d are remembered", size)
	}

	w.server.answerWith(named(100_000))
	w.expect(CodeValid, false, testKey(4, 'a'))
	w.expect(CodeValid, false, testKey(4, 'a')) // it is larger than the cache
	w.expect(CodeValid, true, testKey(0, 'a'))  // and evicts no other key

	w.server.answerWith(named(1000))
	for range 5 { // an evicted key frees its bytes
		w.deliver(stream, changed("again", 10, testKey(0, 'a')))
		w.verify(testKey(0, 'a'))
	}
	w.expect(CodeValid, true, testKey(1, 'a'))
}

func TestKeysThatAreSprayedEvictNone(t *testing.T) {
	w, _ := listening(t, WithCacheSize(3))
	w.verify(testKey(0, 'a'))
	w.server.answer(func(*tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		return &tumblerv1.VerifyResponse{Code: tumblerv1.VerifyCode_VERIFY_CODE_NOT_FOUND, Revision: 10}, nil
	})
	for id := range 10 {
		w.expect(CodeNotFound, false, testKey(id+1, 'x'))
	}
	w.expect(CodeValid, true, testKey(0, 'a'))
}

func TestChangingAVerificationChangesNoVerdict(t *testing.T) {
	w, _ := listening(t)
	for range 2 {
		w.verify(testKey(1, 'a')).Scopes[0] = "*"
	}
	w.expect(CodeInsufficientScope, true, testKey(1, 'a'), RequireScopes("orders:write"))
}

func TestTheOwnKeyAndTheCursorGoWithEachCall(t *testing.T) {
	w, stream := listening(t)
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "the newest"})
	w.verify(testKey(1, 'a'))
	if got := w.server.headers[0].Get("authorization"); len(got) != 1 || got[0] != "Bearer "+ownKey {
		t.Error("it did not bring its own key")
	}
	if got := w.server.lastRequest().GetConsistency().GetAtLeastAsFresh(); got != "the newest" {
		t.Errorf("at least as fresh as %q", got)
	}
}

func TestWithoutACacheEachVerifyIsACallAndThereIsNoStream(t *testing.T) {
	w := newWorld(t, WithCacheSize(0))
	for range 3 {
		w.expect(CodeValid, false, testKey(1, 'a'))
	}
	select {
	case <-w.server.streams:
		t.Error("a stream was opened")
	default:
	}
}

func TestWithoutAStreamNothingIsRemembered(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAFixedTimeToLiveIsKeptToWithoutAStream(t *testing.T) {
	w := newWorld(t, WithoutWatch(), WithFixedTTL(30*time.Second))
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.clock.advance(30*time.Second - 1)
	w.expect(CodeValid, true, testKey(1, 'a'))
	w.clock.advance(1)
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAFixedTimeToLiveNeverOutlastsTheServers(t *testing.T) {
	w := newWorld(t, WithoutWatch(), WithFixedTTL(time.Hour))
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.clock.advance(time.Minute)
	w.expect(CodeValid, false, testKey(1, 'a'))
}

func TestAnUnreachableServerIsUnavailable(t *testing.T) {
	w := newWorld(t, WithoutWatch())
	w.grpc.Stop()
	found, err := w.verifier.Verify(context.Background(), testKey(1, 'a'))
	if found != nil || !errors.Is(err, ErrUnavailable) || status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, %v", found, err)
	}
}

func TestAFailedCallIsTheErrorThatItsCodeSays(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.DeadlineExceeded:  ErrUnavailable,
		codes.ResourceExhausted: ErrUnavailable,
		codes.Internal:          ErrUnavailable,
		codes.Unknown:           ErrUnavailable,
		codes.Unimplemented:     ErrUnavailable,
		codes.Unauthenticated:   ErrNotAllowed,
		codes.PermissionDenied:  ErrNotAllowed,
		codes.InvalidArgument:   ErrInvalidRequest,
	} {
		t.Run(code.String(), func(t *testing.T) {
			w, _ := listening(t)
			w.server.answer(func(*tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
				return nil, status.Error(code, "no")
			})
			found, err := w.verifier.Verify(context.Background(), testKey(1, 'a'))
			if found != nil || !errors.Is(err, want) || status.Code(err) != code {
				t.Errorf("got %v, %v", found, err)
			}
		})
	}
}

func TestAServerThatIsAwayForAMomentIsAskedAgain(t *testing.T) {
	w, _ := listening(t)
	attempts := 0
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		attempts++
		if attempts < 3 {
			return nil, status.Error(codes.Unavailable, "in a moment")
		}
		return goodAnswer(request), nil
	})
	w.expect(CodeValid, false, testKey(1, 'a'))
	if attempts != 3 {
		t.Errorf("%d attempts", attempts)
	}
}

func TestAServerThatDoesNotAnswerIsUnavailableWhenTheTimeIsUp(t *testing.T) {
	w := newWorld(t, WithoutWatch(), WithTimeout(50*time.Millisecond))
	release := w.holdAnswers()
	defer release()
	_, err := w.verifier.Verify(context.Background(), testKey(1, 'a'))
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestACallerWhoseContextEndsWaitsNoLonger(t *testing.T) {
	w, _ := listening(t)
	release := w.holdAnswers()
	defer release()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error)
	go func() {
		_, err := w.verifier.Verify(ctx, testKey(1, 'a'))
		result <- err
	}()
	w.eventually("it is asked for", func() bool { singles, _ := w.server.calls(); return singles == 1 })
	cancel()
	if err := <-result; !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// holdAnswers makes the server hold back its answers until release is called.
func (w *world) holdAnswers() (release func()) {
	held := make(chan struct{})
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		<-held
		return goodAnswer(request), nil
	})
	released := false
	return func() {
		if !released {
			released = true
			close(held)
		}
	}
}

// An answer that waited for longer than max_staleness, in the network or in a process that stood still, may be older
// than a revocation.
func TestAnAnswerThatIsHandedOutTooLateDecidesNothing(t *testing.T) {
	for name, options := range map[string][]Option{
		"with a stream":                  {WithHeartbeat(14 * time.Second)},
		"without a stream":               {WithoutWatch()},
		"without a stream, with a cache": {WithoutWatch(), WithFixedTTL(time.Hour)},
	} {
		for _, code := range []Code{CodeValid, CodeRevoked, CodeNotFound, CodeInsufficientScope} {
			for late, age := range map[bool]time.Duration{false: DefaultMaxStaleness, true: DefaultMaxStaleness + 1} {
				t.Run(fmt.Sprint(name, " ", code, " after ", age), func(t *testing.T) {
					w := newWorld(t, options...)
					var stream *fakeStream
					if name == "with a stream" {
						stream = w.stream()
						w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "begun"})
					}
					held := make(chan struct{})
					w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
						<-held
						response := goodAnswer(request)
						setCode(response, tumblerv1.VerifyCode(code))
						return response, nil
					})
					first := w.start(testKey(1, 'a'), readOrders)
					w.eventually("it is asked for", func() bool { singles, _ := w.server.calls(); return singles == 1 })
					w.clock.advance(age)
					if stream != nil {
						w.deliver(stream, heartbeat(age))
					}
					close(held)
					r := w.await(first)
					switch {
					case late && (r.found != nil || !errors.Is(r.err, ErrUnavailable)):
						t.Errorf("got %v, %v", r.found, r.err)
					case !late && (r.err != nil || r.found.Code != code):
						t.Errorf("got %v, %v", r.found, r.err)
					case late && w.verifier.Remembered() > 0:
						t.Error("it is remembered")
					}
				})
			}
		}
	}
}

// The age counts when a caller gets the verdict, not when the answer arrives.
func TestAnAnswerThatAgesBeforeItIsHandedOutDecidesNothing(t *testing.T) {
	f := &flight{sentAt: time.Second, answer: answer{code: CodeNotFound}}
	for age, want := range map[time.Duration]error{15 * time.Second: nil, 15*time.Second + 1: errOldAnswer} {
		if found, err := f.verdict(&verdict.Demand{}, time.Second+age, 15*time.Second, true); !errors.Is(err, want) || (found == nil) != (want != nil) {
			t.Errorf("after %v: got %v, %v", age, found, err)
		}
	}
}

// A denial whose code this version does not know denies, whatever else the answer says, and drops the key's record.
func TestACodeOfALaterServerDeniesWhateverElseTheAnswerSays(t *testing.T) {
	for name, change := range map[string]func(*tumblerv1.VerifyResponse){
		"without a check time": func(a *tumblerv1.VerifyResponse) { a.CheckTime = nil },
		"with an absurd expiry": func(a *tumblerv1.VerifyResponse) {
			a.ExpireTime = &timestamppb.Timestamp{Seconds: math.MaxInt64}
			a.GraceExpireTime = &timestamppb.Timestamp{Seconds: math.MinInt64}
		},
		"older than an event": func(a *tumblerv1.VerifyResponse) { a.Revision = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			w, stream := listening(t, WithHeartbeat(14*time.Second))
			w.deliver(stream, changed("next", 10, testKey(1, 'a')))
			w.expect(CodeValid, false, testKey(1, 'a'))
			w.clock.advance(DefaultMaxStaleness)
			w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
				a.Code, a.Valid = 77, false
				change(a)
			})
			for range 2 {
				found := w.verify(testKey(1, 'a'))
				if found.Code != 77 || found.Valid || found.Cached || found.Code.String() != "77" || !found.ExpireTime.IsZero() {
					t.Errorf("got %+v", found)
				}
			}
			if w.verifier.Remembered() != 0 {
				t.Error("its record is kept")
			}
		})
	}
}

// A code of a later server about another key, or with valid, is a contradiction.
func TestACodeOfALaterServerAboutAnotherKeyDecidesNothing(t *testing.T) {
	for name, change := range map[string]func(*tumblerv1.VerifyResponse){
		"another key": func(a *tumblerv1.VerifyResponse) { a.Valid, a.KeyId = false, "0000000000000002" },
		"valid":       func(*tumblerv1.VerifyResponse) {},
	} {
		w, _ := listening(t)
		w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
			a.Code = 77
			change(a)
		})
		if found, err := w.verifier.Verify(context.Background(), testKey(1, 'a')); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: got %v, %v", name, found, err)
		}
	}
}

func TestTheCheckTimeOfWhatIsNotProvenIsNotLookedAt(t *testing.T) {
	for _, code := range []Code{CodeMalformed, CodeNotFound} {
		for _, checkTime := range []*timestamppb.Timestamp{nil, {Seconds: math.MaxInt64}, {Seconds: math.MinInt64, Nanos: -1}} {
			w, _ := listening(t)
			w.server.answer(func(*tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
				return &tumblerv1.VerifyResponse{Code: tumblerv1.VerifyCode(code), CheckTime: checkTime}, nil
			})
			w.expect(code, false, testKey(1, 'a'))
		}
	}
}

func TestACIDRThatCannotBeParsedContainsNoAddressAndDoesNotSpoilTheAnswer(t *testing.T) {
	for want, cidrs := range map[Code][]string{
		CodeIPNotAllowed: {"junk", "x\x00y", ""},
		CodeValid:        {"junk", "192.0.2.0/24"},
	} {
		w, _ := listening(t)
		w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
			a.AllowedCidrs = cidrs
			a.Code, a.Valid = tumblerv1.VerifyCode(want), want == CodeValid
		})
		w.expect(want, false, testKey(1, 'a'), ClientIP("192.0.2.7"))
		w.expect(want, true, testKey(1, 'a'), ClientIP("192.0.2.7"))
	}
}

// Times to live that no time.Duration holds neither wrap around nor have a guarded stream verified all the time.
func TestATimeToLiveNeverOverflows(t *testing.T) {
	for name, c := range map[string]struct {
		ttl    *durationpb.Duration
		cached bool
	}{
		"the longest":     {&durationpb.Duration{Seconds: math.MaxInt64, Nanos: math.MaxInt32}, true},
		"the protobuf's":  {&durationpb.Duration{Seconds: 315_576_000_000}, true},
		"the shortest":    {&durationpb.Duration{Seconds: math.MinInt64, Nanos: math.MinInt32}, false},
		"a bit negative":  {&durationpb.Duration{Nanos: -1}, false},
		"nothing":         {&durationpb.Duration{}, false},
		"nanos, negative": {&durationpb.Duration{Nanos: math.MinInt32}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := listening(t)
			w.clock.advance(time.Second)
			w.server.answerWith(func(a *tumblerv1.VerifyResponse) { a.CacheTtl = c.ttl })
			if found := w.verify(testKey(1, 'a')); c.cached != (found.until == always) {
				t.Errorf("it is relied on until %v", found.until)
			}
			w.expect(CodeValid, c.cached, testKey(1, 'a'))
		})
	}
}
