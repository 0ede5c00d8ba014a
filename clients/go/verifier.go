package tumbler

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
	"tumbler.dev/go/internal/verdict"
	"tumbler.dev/go/keyformat"
)

// Verifier says of presented keys whether they may do what is asked. It remembers what the server told it of a key, and
// listens to what changes. All methods may be called by many goroutines; one Verifier is enough for a program.
type Verifier struct {
	timeout  time.Duration
	log      *slog.Logger
	digester *digester
	memory   *memory
	calls    *calls
	clock    clock
	conn     *connection
	sessions *sessions
	cancel   context.CancelFunc
	watching sync.WaitGroup
	closed   atomic.Bool
}

// NewVerifier returns a Verifier that asks the server at a gRPC target, "127.0.0.1:50051" for example. It connects in the
// background, so an error here is an option's: it names the option and the rule. Close it when it is not needed any
// more.
func NewVerifier(target string, options ...Option) (*Verifier, error) {
	s, err := newSettings(target, options)
	if err != nil {
		return nil, err
	}
	conn, err := connect(target, s)
	if err != nil {
		return nil, fmt.Errorf("tumbler: target: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	service := tumblerv1.NewApiKeyServiceClient(conn)
	memory := newMemory(s)
	v := &Verifier{
		timeout:  s.timeout,
		log:      s.logger,
		digester: newDigester(),
		memory:   memory,
		calls: &calls{
			service:  service,
			memory:   memory,
			projects: &s.projects,
			timeout:  s.timeout,
			suspect:  conn.suspect,
			ctx:      ctx,
			flights:  make(map[string]*flight),
		},
		clock:    s.clock,
		conn:     conn,
		sessions: newSessions(s, memory),
		cancel:   cancel,
	}
	v.sessions.verify = v.Verify
	v.calls.doubt = v.sessions.heard
	if s.watches() {
		w := &watcher{
			service:   service,
			conn:      conn,
			memory:    memory,
			calls:     v.calls,
			sessions:  v.sessions,
			clock:     s.clock,
			heartbeat: s.heartbeat,
			project:   s.projects.only(),
			log:       s.logger,
		}
		v.watching.Add(1)
		go func() {
			defer v.watching.Done()
			w.run(ctx)
		}()
	}
	return v, nil
}

// Verify says whether a presented key may do what the options ask, now. It answers from what is remembered where it
// can, in less than a microsecond, and asks the server otherwise, for at most the Verifier's timeout or until ctx ends.
//
// The error is ErrUnavailable, ErrNotAllowed or ErrInvalidRequest, and the Verification nil, where nothing was decided.
// A key that is not accepted is no error: look at Valid.
func (v *Verifier) Verify(ctx context.Context, key string, options ...VerifyOption) (*Verification, error) {
	if v.closed.Load() {
		return nil, errClosed
	}
	keyID, ok := keyformat.PeekID(key)
	if !ok {
		return &Verification{Code: CodeMalformed}, nil
	}
	demand, nameless := merge(options)
	if nameless {
		return nil, errNameless
	}
	digest := v.digester.of(key)
	known, now := v.memory.recall(keyID)
	if known != nil && same(&known.digest, &digest) {
		code := Code(verdict.Decide(&known.record.Record, &demand, known.serverTime(now)))
		return known.lasting(known.record.verification(code, true)), nil
	}
	if !keyformat.WellFormed(key) {
		return &Verification{Code: CodeMalformed}, nil
	}
	if known != nil { // an id has one key, and this is not it
		return &Verification{Code: CodeNotFound, Cached: true}, nil
	}
	return v.ask(ctx, keyID, key, &digest, &demand)
}

// ask waits for a call of its own, or for one that is under way for the same key.
func (v *Verifier) ask(
	ctx context.Context, keyID, key string, digest *digest, demand *verdict.Demand,
) (*Verification, error) {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	for {
		f, joined := v.calls.join(keyID, key, digest, demand)
		err := f.wait(ctx)
		v.calls.leave(f)
		switch {
		case err == nil:
			return f.verdict(demand, v.clock.now(), joined), nil
		case joined && isInvalid(err) && !sameDemand(&f.demand, demand):
			continue // what is wrong with the other's demand says nothing about this one
		default:
			return nil, err
		}
	}
}

// Remembered returns how many keys are remembered at the moment, for metrics.
func (v *Verifier) Remembered() int { return v.memory.len() }

// Close ends the stream, the connection and every Verify that waits, which then fails with ErrUnavailable, as does each
// that comes later. It ends what guards hold to its keys, without waiting for their handlers. It returns when no goroutine of
// the Verifier is left, and may be called again.
func (v *Verifier) Close() error {
	v.closed.Store(true)
	v.cancel()
	v.sessions.close(errClosed)
	v.calls.close()
	v.sessions.asking.Wait()
	v.watching.Wait()
	v.memory.mistrust()
	v.conn.close()
	return nil
}

// Format keeps every way of printing from showing what a Verifier holds.
func (v *Verifier) Format(f fmt.State, _ rune) { io.WriteString(f, "tumbler.Verifier") }
