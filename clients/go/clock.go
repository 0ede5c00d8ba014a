package tumbler

import (
	"context"
	"time"
)

// clock is where time comes from. Tests have one that stands still until it is moved.
type clock interface {
	// now is the time since some instant of the past. It never goes back, whatever is done to the wall clock.
	now() time.Duration
	// afterFunc calls f in a goroutine of its own once so much time has gone by, unless stop is called before.
	afterFunc(d time.Duration, f func()) (stop func())
}

type systemClock struct{ start time.Time }

func newSystemClock() clock { return systemClock{time.Now()} }

func (c systemClock) now() time.Duration { return time.Since(c.start) }

func (c systemClock) afterFunc(d time.Duration, f func()) func() {
	timer := time.AfterFunc(d, f)
	return func() { timer.Stop() }
}

// pause returns after a time, or as soon as the context ends.
func pause(ctx context.Context, c clock, d time.Duration) {
	over := make(chan struct{})
	defer c.afterFunc(d, func() { close(over) })()
	select {
	case <-over:
	case <-ctx.Done():
	}
}
