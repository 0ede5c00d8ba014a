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
	shortestPause = 100 * time.Millisecond
	longestPause  = 5 * time.Second
	refusedPause  = 5 * time.Second
)

var (
	errSilent = errors.New("no heartbeat arrived in two and a half intervals")
	errLate   = errors.New("its heartbeats arrive too late to be used")
)

// silence is how long a stream may be silent before it is closed and reopened.
func silence(heartbeat time.Duration) time.Duration { return heartbeat * 5 / 2 }

// watcher follows the Watch stream, and evicts changed keys from the cache. It reopens the stream whenever it breaks.
type watcher struct {
	service   tumblerv1.ApiKeyServiceClient
	conn      *connection
	memory    *memory
	calls     *calls
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
		heard, err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if heard {
			failures = 0
		}
		w.tell(ctx, err, failures)
		pause(ctx, w.clock, w.after(err, failures))
		failures++
		w.conn.channel().ResetConnectBackoff() // the pause was here; the channel's own backoff would add to it
	}
}

// follow reads one stream until it breaks, and reports whether it delivered any message.
func (w *watcher) follow(ctx context.Context) (heard bool, err error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	listen := func() (stop func()) {
		return w.clock.afterFunc(silence(w.heartbeat), func() { giveUp(errSilent) })
	}
	stop := listen()
	defer func() { stop() }()
	cursor, opened := w.memory.cursor(), w.clock.now()
	stream, err := w.service.Watch(ctx, &tumblerv1.WatchRequest{
		ProjectId:         w.project,
		StartCursor:       cursor,
		HeartbeatInterval: durationpb.New(w.heartbeat),
	}, grpc.WaitForReady(true)) // starts as soon as there is a connection
	if err != nil {
		return false, w.broken(ctx, err, cursor)
	}
	for {
		said, err := stream.Recv()
		if err != nil {
			return heard, w.broken(ctx, err, cursor)
		}
		stop()
		stop = listen()
		listen := w.hear(said, opened)
		if !heard && cursor == "" {
			// The verdicts that admitted guarded streams may be older than the start of this stream.
			w.sessions.heard(true)
		}
		if !listen {
			return heard, errLate
		}
		heard = true
	}
}

// hear evicts the keys that a message names, and reports whether to keep the stream. Calls in flight go on for the
// callers that wait for them; a caller that arrives after a change makes a new call.
func (w *watcher) hear(said *tumblerv1.WatchResponse, opened time.Duration) bool {
	listen := w.memory.hear(said, opened)
	w.calls.outdate(said.GetEvents(), said.GetReset_())
	if said.GetReset_() || len(said.GetEvents()) > 0 {
		keyIDs := make([]string, len(said.GetEvents()))
		for place, event := range said.GetEvents() {
			keyIDs[place] = event.GetKeyId()
		}
		w.sessions.heard(said.GetReset_(), keyIDs...)
	}
	return listen
}

// broken handles the end of a stream that started at cursor, and returns the cause.
func (w *watcher) broken(ctx context.Context, err error, cursor string) error {
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		w.conn.suspect()
		return cause
	}
	switch code := status.Code(err); {
	case isRefusal(code):
		w.memory.mistrust()
		w.outdate()
	case code == codes.InvalidArgument && cursor != "":
		w.memory.dropCursor(cursor)
		w.outdate()
	}
	return err
}

// outdate keeps new callers from joining calls in flight, and has all keys of guarded streams verified again.
func (w *watcher) outdate() {
	w.calls.outdate(nil, true)
	w.sessions.heard(true)
}

// after returns the pause before the next attempt: exponential backoff with full jitter, so that clients do not all
// reconnect at once.
func (w *watcher) after(err error, failures int) time.Duration {
	if isRefusal(status.Code(err)) {
		return refusedPause
	}
	span := min(longestPause, shortestPause<<min(failures, 10))
	return rand.N(span) + 1
}

func (w *watcher) tell(ctx context.Context, err error, failures int) {
	level := slog.LevelDebug
	switch {
	case isRefusal(status.Code(err)):
		level = slog.LevelError
	case failures == 0:
		level = slog.LevelWarn
	}
	w.log.Log(ctx, level, "tumbler: the stream broke and will be reopened", "error", fmt.Sprint(err))
}

func isRefusal(code codes.Code) bool {
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}
