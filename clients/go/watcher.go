package tumbler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

const (
	firstBackoff   = 100 * time.Millisecond
	maxBackoff     = 5 * time.Second
	refusedBackoff = 5 * time.Second
)

var (
	errSilent = errors.New("no heartbeat arrived in two and a half intervals")
	errLate   = errors.New("its heartbeats arrive too late to be used")
)

// maxSilence is how long a stream may be silent before it is closed and reopened.
func maxSilence(heartbeat time.Duration) time.Duration { return heartbeat * 5 / 2 }

// watcher follows the Watch stream, and evicts changed keys from the cache. It reopens the stream whenever it breaks.
type watcher struct {
	service   tumblerv1.ApiKeyServiceClient
	conn      *connection
	cache     *cache
	batcher   *batcher
	sessions  *sessions
	clock     clock
	heartbeat time.Duration
	project   string // empty: all projects that the Verifier's own key sees
	log       *slog.Logger
}

// run follows the stream until the context ends.
func (w *watcher) run(ctx context.Context) {
	failures := 0
	for {
		began := w.clock.now()
		err := w.followStream(ctx)
		if ctx.Err() != nil {
			return
		}
		if w.clock.now()-began >= w.heartbeat {
			failures = 0 // a stream that breaks at once is no recovery, even if it delivered a message
		}
		w.logEnd(ctx, err, failures)
		sleep(ctx, w.clock, w.backoff(err, failures))
		failures++
		w.conn.channel().ResetConnectBackoff() // the backoff was here; the channel's own backoff would add to it
	}
}

// followStream reads one stream until it breaks, and returns why it did.
func (w *watcher) followStream(ctx context.Context) error {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	startTimer := func() (stop func()) {
		return w.clock.afterFunc(maxSilence(w.heartbeat), func() { giveUp(errSilent) })
	}
	stop := startTimer()
	defer func() { stop() }() //nolint:gocritic // deferUnlambda: stop is replaced with each message
	cursor, requestedAt := w.cache.position().cursor, w.clock.now()
	stream, err := w.service.Watch(ctx, &tumblerv1.WatchRequest{
		ProjectId:         w.project,
		StartCursor:       cursor,
		HeartbeatInterval: durationpb.New(w.heartbeat),
	}, grpc.WaitForReady(true)) // starts as soon as there is a connection
	if err != nil {
		return w.streamEnded(ctx, err, cursor)
	}
	receivedAny := false
	for {
		response, err := stream.Recv()
		if err != nil {
			return w.streamEnded(ctx, err, cursor)
		}
		stop()
		stop = startTimer()
		keep := w.handle(response, requestedAt)
		if !receivedAny && cursor == "" {
			// The verdicts that admitted guarded streams may be older than the start of this stream.
			w.sessions.changed(true)
		}
		if !keep {
			return errLate
		}
		receivedAny = true
	}
}

// handle evicts the keys that a message names, and reports whether to keep the stream. Calls in flight go on for the
// callers that wait for them; a caller that arrives after a change makes a new call.
func (w *watcher) handle(response *tumblerv1.WatchResponse, requestedAt time.Duration) bool {
	keep := w.cache.apply(response, requestedAt)
	w.batcher.detach(response.GetEvents(), response.GetReset_())
	if response.GetReset_() || len(response.GetEvents()) > 0 {
		keyIDs := make([]string, len(response.GetEvents()))
		for place, event := range response.GetEvents() {
			keyIDs[place] = event.GetKeyId()
		}
		w.sessions.changed(response.GetReset_(), keyIDs...)
	}
	return keep
}

// streamEnded handles the end of a stream that started at cursor, and returns the cause.
func (w *watcher) streamEnded(ctx context.Context, err error, cursor string) error {
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		w.conn.reconnect()
		return cause
	}
	switch code := status.Code(err); {
	case isRefusal(code):
		w.cache.invalidate()
		w.detach()
	case code == codes.InvalidArgument && cursor != "":
		w.cache.dropCursor(cursor)
		w.detach()
	}
	return err
}

// detach keeps new callers from joining calls in flight, and has all keys of guarded streams verified again.
func (w *watcher) detach() {
	w.batcher.detach(nil, true)
	w.sessions.changed(true)
}

// backoff returns the pause before the next attempt: exponential backoff with full jitter, so that clients do not all
// reconnect at once.
func (w *watcher) backoff(err error, failures int) time.Duration {
	if isRefusal(status.Code(err)) {
		return refusedBackoff
	}
	span := min(maxBackoff, firstBackoff<<min(failures, 10))
	return rand.N(span) + 1 //nolint:gosec // a pause is no secret
}

func (w *watcher) logEnd(ctx context.Context, err error, failures int) {
	level := slog.LevelDebug
	switch {
	case isRefusal(status.Code(err)):
		level = slog.LevelError
	case failures == 0:
		level = slog.LevelWarn
	}
	w.log.Log(ctx, level, "tumbler: the stream broke and will be reopened", "error", redact(fmt.Sprint(err)))
}

func isRefusal(code codes.Code) bool {
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}
