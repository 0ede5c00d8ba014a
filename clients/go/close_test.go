package tumbler

import (
	"bytes"
	"context"
	"errors"
	"runtime/pprof"
	"strings"
	"testing"
)

func TestAClosedVerifierAnswersNobody(t *testing.T) {
	w, _ := listening(t)
	w.expect(CodeValid, false, testKey(1, 'a'))
	w.verifier.Close()
	w.verifier.Close()
	for _, key := range []string{testKey(1, 'a'), testKey(2, 'a')} {
		if found, err := w.verifier.Verify(context.Background(), key); found != nil || !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %+v, %v", found, err)
		}
	}
	if w.verifier.Remembered() != 0 {
		t.Error("something is remembered")
	}
}

func TestClosingEndsTheStreamAndEveryWait(t *testing.T) {
	w, stream := listening(t)
	release := w.occupy()
	defer release()
	waiting := []<-chan result{w.start(testKey(9000, 'a')), w.start(testKey(1, 'a')), w.start(testKey(2, 'a'))}
	w.eager(testKey(9000, 'a'), 2)
	w.queued(2)
	w.verifier.Close()
	if left := w.verifier.batcher.callsInFlight; left != 0 {
		t.Errorf("%d calls are under way", left)
	}
	for _, one := range waiting {
		if r := w.await(one); r.found != nil || !errors.Is(r.err, ErrUnavailable) {
			t.Errorf("got %+v, %v", r.found, r.err)
		}
	}
	w.gone(stream)
}

func TestNoGoroutineIsLeftAfterClosing(t *testing.T) {
	w, _ := listening(t)
	release := w.occupy()
	w.verifier.Close()
	// The callers' own goroutines may not have returned from Verify yet.
	const client = "tumbler.dev/go."
	if found := goroutines(client+"(*batcher).run", client+"(*watcher)", client+"(*sessions).check"); found != "" {
		t.Errorf("left behind:\n%s", found)
	}
	release()
	w.grpc.Stop()
	// gRPC's own goroutines end a moment after its Close.
	w.eventually("gRPC's goroutines have ended", func() bool { return goroutines("google.golang.org/grpc") == "" })
}

// goroutines returns the stacks of goroutines that contain one of the names.
func goroutines(names ...string) string {
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 2); err != nil {
		panic(err)
	}
	var found []string
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		for _, name := range names {
			if strings.Contains(stack, name) {
				found = append(found, stack)
			}
		}
	}
	return strings.Join(found, "\n\n")
}
