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

// Verifier decides whether presented keys are valid for what is demanded. It caches the server's records of keys, and
// follows the Watch stream. It is safe for concurrent use by multiple goroutines; one Verifier is enough for a program.
type Verifier struct {
	timeout  time.Duration
	log      *slog.Logger
	digester *digester
	cache    *cache
	batcher  *batcher
	clock    clock
	conn     *connection
	sessions *sessions
	cancel   context.CancelFunc
	watching sync.WaitGroup
	closed   atomic.Bool
}

// NewVerifier returns a Verifier that calls the server at a gRPC target, "127.0.0.1:50051" for example. It connects in
// the background, so an error means that the target or an option is wrong; it names the option and the rule.
// Close the Verifier after use.
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
	cache := newCache(s)
	v := &Verifier{
		timeout:  s.timeout,
		log:      s.logger,
		digester: newDigester(),
		cache:    cache,
		batcher: &batcher{
			service:   service,
			cache:     cache,
			projects:  &s.projects,
			timeout:   s.timeout,
			reconnect: conn.reconnect,
			ctx:       ctx,
			joinable:  make(map[string]*flight),
		},
		clock:    s.clock,
		conn:     conn,
		sessions: newSessions(s, cache),
		cancel:   cancel,
	}
	v.sessions.verify = v.Verify
	v.batcher.onChange = v.sessions.changed
	if s.watches() {
		w := &watcher{
			service:   service,
			conn:      conn,
			cache:     cache,
			batcher:   v.batcher,
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

// Verify decides whether a presented key is valid now for what the options demand. It answers from the cache if it can,
// in less than a microsecond. Otherwise it calls the server, and waits at most for the Verifier's timeout or until ctx
// ends.
//
// If Verify cannot decide, it returns a nil Verification and ErrUnavailable, ErrNotAllowed or ErrInvalidRequest.
// A key that is not valid is not an error: check Valid.
func (v *Verifier) Verify(ctx context.Context, key string, options ...VerifyOption) (*Verification, error) {
	if v.closed.Load() {
		return nil, errClosed
	}
	keyID, ok := keyformat.PeekID(key)
	if !ok {
		return &Verification{Code: CodeMalformed}, nil
	}
	demand, invalidProject := merge(options)
	if invalidProject {
		return nil, errInvalidProject
	}
	digest := v.digester.digest(key)
	known, now := v.cache.lookup(keyID)
	if known != nil && same(&known.digest, &digest) {
		code := Code(verdict.Decide(&known.record.Record, &demand, known.serverTime(now)))
		return known.withUntil(known.record.verification(code, true)), nil
	}
	if !keyformat.WellFormed(key) {
		return &Verification{Code: CodeMalformed}, nil
	}
	if known != nil { // an id has one key, and this is a different text
		return &Verification{Code: CodeNotFound, Cached: true}, nil
	}
	return v.verifyRemotely(ctx, keyID, key, &digest, &demand)
}

// verifyRemotely waits for a call of its own, or joins one in flight for the same key.
func (v *Verifier) verifyRemotely(
	ctx context.Context, keyID, key string, digest *digest, demand *verdict.Demand,
) (*Verification, error) {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	for {
		f, joined := v.batcher.join(keyID, key, digest, demand)
		err := f.wait(ctx)
		v.batcher.leave(f)
		switch {
		case err == nil:
			return f.verdict(demand, v.clock.now(), v.cache.maxStaleness, joined)
		case joined && isInvalid(err) && !sameDemand(&f.demand, demand):
			continue // the first caller's demand was invalid; this one differs
		default:
			return nil, err
		}
	}
}

// Remembered returns the number of cached keys, for metrics.
func (v *Verifier) Remembered() int { return v.cache.len() }

// Close closes the Watch stream and the connection. Pending and later calls of Verify fail with ErrUnavailable. Close
// ends all guarded streams, without waiting for their handlers. It returns when no goroutine of the Verifier is left.
// It may be called more than once.
func (v *Verifier) Close() error {
	v.closed.Store(true)
	v.cancel()
	v.sessions.close(errClosed)
	v.batcher.close()
	v.sessions.checks.Wait()
	v.watching.Wait()
	v.cache.invalidate()
	v.conn.close()
	return nil
}

// Format prints only the type's name with every verb, so that no verb shows a secret.
func (v *Verifier) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "tumbler.Verifier") }
