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

// silence is how long a stream may say nothing before it is given up.
func silence(heartbeat time.Duration) time.Duration { return heartbeat * 5 / 2 }

// watcher keeps the memory true: it listens to what changes, and begins again whenever the stream breaks.
type watcher struct {
	service   tumblerv1.ApiKeyServiceClient
	conn      *connection
	memory    *memory
	calls     *calls
	sessions  *sessions
	clock     clock
	heartbeat time.Duration
	project   string // empty: all that the Verifier's own key sees
	log       *slog.Logger
}

// run listens until the context ends.
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
		w.conn.channel().ResetConnectBackoff() // the pause was made here; the channel's own would come on top
	}
}

// follow listens to one stream until it breaks, and says whether it brought anything.
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
	}, grpc.WaitForReady(true)) // begins as soon as there is a connection
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
			// What let streams in may be older than where this one begins.
			w.sessions.heard(true)
		}
		if !listen {
			return heard, errLate
		}
		heard = true
	}
}

// hear forgets what is said to have changed, and says whether to listen any longer. Calls under way are left to those
// who wait for them: whoever comes after a change asks anew.
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

// broken does what the end of a stream that began at a cursor asks for, and returns why it ended.
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

// outdate has everything asked anew.
func (w *watcher) outdate() {
	w.calls.outdate(nil, true)
	w.sessions.heard(true)
}

// after returns how long to wait: a span that doubles, and any part of it, so that clients do not all come at once.
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
