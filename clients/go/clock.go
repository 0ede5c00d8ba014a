package tumbler

import (
	"context"
	"time"
)

// clock is the source of time. Tests use one that moves only when they advance it.
type clock interface {
	// now returns the time since some instant in the past, by the monotonic clock.
	now() time.Duration
	// afterFunc calls f in its own goroutine after d, unless stop is called first.
	afterFunc(d time.Duration, f func()) (stop func())
}

type systemClock struct{ start time.Time }

func newSystemClock() clock { return systemClock{time.Now()} }

func (c systemClock) now() time.Duration { return time.Since(c.start) }

func (c systemClock) afterFunc(d time.Duration, f func()) func() {
	timer := time.AfterFunc(d, f)
	return func() { timer.Stop() }
}

// later returns the instant d after another, or always if there is no such instant.
func later(instant, d time.Duration) time.Duration {
	if d > always-instant {
		return always
	}
	return instant + d
}

// sleep waits for d, or until the context ends.
func sleep(ctx context.Context, c clock, d time.Duration) {
	over := make(chan struct{})
	defer c.afterFunc(d, func() { close(over) })()
	select {
	case <-over:
	case <-ctx.Done():
	}
}
