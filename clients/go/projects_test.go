package tumbler

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// nothingTold fails if a verdict is not CodeNotFound, or contains any detail of the key.
func nothingTold(t *testing.T, found *Verification) {
	t.Helper()
	if want := (&Verification{Code: CodeNotFound, Cached: found.Cached}); !reflect.DeepEqual(found, want) {
		t.Errorf("it tells %+v", found)
	}
}

// inProject makes the server answer that all keys belong to one project.
func (s *fakeServer) inProject(id string) {
	s.answerWith(func(a *tumblerv1.VerifyResponse) { a.ProjectId = id })
}

func TestTheServerIsAskedForAProjectThatIsTheOnlyOne(t *testing.T) {
	for name, c := range map[string]struct {
		options []Option
		want    string
	}{
		"none is said": {nil, ""},
		"any":          {[]Option{WithAnyProject()}, ""},
		"one":          {[]Option{WithProjectID("acme")}, "acme"},
		"several":      {[]Option{WithProjectID("acme", "globex")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.options...)
			stream := w.stream()
			w.expect(CodeValid, false, testKey(1, 'a'))
			if asked := w.server.lastRequest().GetProjectId(); asked != c.want || stream.request.GetProjectId() != c.want {
				t.Errorf("asked for %q, and listens to %q", asked, stream.request.GetProjectId())
			}
		})
	}
}

func TestAKeyOfAnotherProjectIsNotFound(t *testing.T) {
	for name, option := range map[string]Option{"one": WithProjectID("acme"), "several": WithProjectID("acme", "initech")} {
		t.Run(name, func(t *testing.T) {
			w, _ := listening(t, option)
			w.server.inProject("globex")
			for range 2 {
				nothingTold(t, w.verify(testKey(1, 'a')))
			}
			w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
				a.ProjectId, a.Valid, a.Code = "globex", false, tumblerv1.VerifyCode_VERIFY_CODE_REVOKED
			})
			nothingTold(t, w.verify(testKey(1, 'a')))
			if remembered := w.verifier.Remembered(); remembered != 0 {
				t.Errorf("%d are remembered", remembered)
			}
			w.server.inProject("acme")
			w.expect(CodeValid, false, testKey(2, 'a'))
			w.expect(CodeValid, true, testKey(2, 'a'))
		})
	}
}

func TestACallNarrowsAndNeverWidens(t *testing.T) {
	w, _ := listening(t, WithAnyProject())
	w.server.inProject("globex")
	key := testKey(1, 'a')
	for range 2 { // by a call, and from the cache
		nothingTold(t, w.verify(key, Project("acme")))
	}
	w.expect(CodeValid, true, key)
	w.expect(CodeValid, true, key, Project("acme", "globex"))
	w.expect(CodeValid, true, key, Project("acme", "globex"), Project("globex"))
	nothingTold(t, w.verify(key, Project("acme"), Project("globex")))

	narrow, _ := listening(t, WithProjectID("acme"))
	narrow.server.inProject("globex")
	nothingTold(t, narrow.verify(key, Project("globex")))
	narrow.server.inProject("acme")
	nothingTold(t, narrow.verify(key, Project("globex")))
	narrow.expect(CodeValid, true, key, Project("globex", "acme"))
}

func TestWhatIsNotRememberedIsNarrowedToo(t *testing.T) {
	w, _ := listening(t, WithAnyProject())
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) {
		a.ProjectId, a.Valid, a.Code = "globex", false, tumblerv1.VerifyCode_VERIFY_CODE_REVOKED
	})
	nothingTold(t, w.verify(testKey(1, 'a'), Project("acme")))
	w.expect(CodeRevoked, false, testKey(1, 'a'))
}

func TestWhoSharesACallHasProjectsOfTheirOwn(t *testing.T) {
	w, _ := listening(t, WithAnyProject())
	held := make(chan struct{})
	w.server.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		<-held
		return goodAnswer(request), nil
	})
	key := testKey(1, 'a')
	refused, accepted, indifferent := w.start(key, Project("globex")), w.start(key, Project("acme")), w.start(key)
	w.eager(key, 3)
	close(held)
	nothingTold(t, w.await(refused).found)
	for _, one := range []<-chan result{accepted, indifferent} {
		if got := w.await(one); got.err != nil || !got.found.Valid {
			t.Errorf("got %+v, %v", got.found, got.err)
		}
	}
}

func TestAKeyThatSeesAllProjectsMustSayWhich(t *testing.T) {
	seesAll := func(a *tumblerv1.VerifyResponse) { a.AnyProject = true }
	w, _ := listening(t)
	w.server.answerWith(seesAll)
	for _, options := range [][]VerifyOption{nil, {Project("acme")}} {
		found, err := w.verifier.Verify(context.Background(), testKey(1, 'a'), options...)
		if found != nil || !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), "use WithProjectID, or WithAnyProject") {
			t.Errorf("got %+v, %v", found, err)
		}
	}
	if remembered := w.verifier.Remembered(); remembered != 0 {
		t.Errorf("%d are remembered", remembered)
	}
	for _, option := range []Option{WithAnyProject(), WithProjectID("acme", "globex")} {
		said, _ := listening(t, option)
		said.server.answerWith(seesAll)
		said.expect(CodeValid, false, testKey(1, 'a'))
	}
}

func TestABatchOfAKeyThatSeesAllProjectsIsRefusedToo(t *testing.T) {
	w, _ := listening(t)
	release := w.occupy()
	waiting := []<-chan result{w.start(testKey(1, 'a')), w.start(testKey(2, 'a'))}
	for id := range waiting {
		w.eager(testKey(id+1, 'a'), 1)
	}
	w.server.answerWith(func(a *tumblerv1.VerifyResponse) { a.AnyProject = true })
	release()
	for _, one := range waiting {
		if got := w.await(one); got.found != nil || !errors.Is(got.err, ErrNotAllowed) {
			t.Errorf("got %+v, %v", got.found, got.err)
		}
	}
	if _, batches := w.server.calls(); batches != 1 {
		t.Errorf("%d batches", batches)
	}
}

func TestNoProjectIsNotAnyProject(t *testing.T) {
	w, _ := listening(t)
	for _, ids := range [][]string{nil, {}, {""}, {"acme", ""}} {
		if v, err := NewVerifier("localhost:1", WithAPIKey(ownKey), WithProjectID(ids...)); err == nil {
			v.Close()
			t.Errorf("%q was taken", ids)
		} else if !strings.Contains(err.Error(), "WithProjectID: must be") {
			t.Errorf("%q: %v", ids, err)
		}
		found, err := w.verifier.Verify(context.Background(), testKey(1, 'a'), Project("acme"), Project(ids...))
		if found != nil || !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%q: %+v, %v", ids, found, err)
		}
	}
	if v, err := NewVerifier("localhost:1", WithAPIKey(ownKey), WithProjectID("acme"), WithAnyProject()); err == nil {
		v.Close()
		t.Error("both were taken")
	}
}

func TestAGuardNarrowsWhatItsVerifierAccepts(t *testing.T) {
	w := newWorld(t, WithoutWatch(), WithAnyProject())
	key := []string{"x-api-key", testKey(1, 'a')} // a key of acme
	for _, c := range []struct {
		option VerifyOption
		http   int
		grpc   codes.Code
	}{
		{Project("acme", "globex"), 200, codes.OK},
		{Project("globex"), 401, codes.Unauthenticated},
		{Project(""), 500, codes.Internal},
	} {
		handler := Middleware(w.verifier, c.option)(http.HandlerFunc(whoami))
		if got := get(handler, "/", key...); got.Code != c.http {
			t.Errorf("%v: %d", c.option, got.Code)
		}
		unary, stream := both(guarded(t, w, func(context.Context) {}, c.option), key...)
		if status.Code(unary) != c.grpc || status.Code(stream) != c.grpc {
			t.Errorf("%v: %v, %v", c.option, unary, stream)
		}
	}
}
