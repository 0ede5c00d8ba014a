package tumbler

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
)

// The defaults of the options.
const (
	DefaultCacheSize    = 10_000
	DefaultCacheBytes   = 32 << 20
	DefaultMaxStaleness = 15 * time.Second
	DefaultHeartbeat    = 5 * time.Second
	DefaultTimeout      = 2 * time.Second
)

// The server's limits on the heartbeat interval.
const (
	shortestHeartbeat = time.Second
	longestHeartbeat  = time.Hour
)

// Option configures a Verifier.
type Option func(*settings)

type settings struct {
	apiKey       string
	projects     projects
	projectsSet  bool
	credentials  credentials.TransportCredentials
	insecure     bool
	cacheSize    int
	cacheBytes   int
	maxStaleness time.Duration
	heartbeat    time.Duration
	timeout      time.Duration
	noWatch      bool
	fixedTTL     time.Duration
	fixedTTLSet  bool
	logger       *slog.Logger
	clock        clock
}

// WithAPIKey sets the Verifier's own key, which needs the scope tumbler:keys:verify. Required.
func WithAPIKey(key string) Option { return func(s *settings) { s.apiKey = key } }

// WithProjectID sets the projects whose keys are accepted. A key of another project is CodeNotFound. The default is the
// project of the Verifier's own key. If that key belongs to the reserved project tumbler, it sees all projects: then
// WithProjectID or WithAnyProject is required.
func WithProjectID(ids ...string) Option {
	return func(s *settings) { s.projects.named, s.projectsSet = slices.Clone(ids), true }
}

// WithAnyProject accepts the keys of all projects that the Verifier's own key sees, of every tenant.
func WithAnyProject() Option { return func(s *settings) { s.projects.any = true } }

// WithCredentials secures the connection: credentials.NewTLS(nil) uses the system's roots, for example. The default is
// plaintext, which is refused unless the target is this machine.
func WithCredentials(c credentials.TransportCredentials) Option {
	return func(s *settings) { s.credentials = c }
}

// WithInsecure allows plaintext to another machine. Anyone on the network path can then read the keys.
func WithInsecure() Option { return func(s *settings) { s.insecure = true } }

// WithCacheSize sets the maximum number of cached keys. With 0 there is no cache, and each Verify is a call. See
// DefaultCacheSize.
func WithCacheSize(keys int) Option { return func(s *settings) { s.cacheSize = keys } }

// WithCacheBytes sets the maximum size of the cache in bytes. A key counts as the size of the server's answer plus
// 1,024. With 0 there is no cache. See DefaultCacheBytes.
func WithCacheBytes(bytes int) Option { return func(s *settings) { s.cacheBytes = bytes } }

// WithMaxStaleness sets the maximum age of the Watch stream's last heartbeat; the cache does not answer beyond it. This
// bounds how long a revoked key is still accepted if the server is unreachable. It must be longer than the heartbeat.
// See DefaultMaxStaleness.
func WithMaxStaleness(d time.Duration) Option { return func(s *settings) { s.maxStaleness = d } }

// WithHeartbeat sets how often the server sends a heartbeat on the Watch stream: 1 s to 1 h. See DefaultHeartbeat.
func WithHeartbeat(d time.Duration) Option { return func(s *settings) { s.heartbeat = d } }

// WithTimeout sets the longest duration of a Verify. See DefaultTimeout.
func WithTimeout(d time.Duration) Option { return func(s *settings) { s.timeout = d } }

// WithoutWatch opens no Watch stream. Nothing is cached unless WithFixedTTL is set.
func WithoutWatch() Option { return func(s *settings) { s.noWatch = true } }

// WithFixedTTL caches keys for this long without a Watch stream. No revocation is seen, so a revoked key may be
// accepted for that time. It is allowed only with WithoutWatch.
func WithFixedTTL(d time.Duration) Option {
	return func(s *settings) { s.fixedTTL, s.fixedTTLSet = d, true }
}

// WithLogger sets the logger of the Verifier and its guards. The default is slog.Default(). No key is ever logged.
func WithLogger(l *slog.Logger) Option { return func(s *settings) { s.logger = l } }

// watches reports whether a Watch stream is opened. Without a cache there is nothing to keep fresh.
func (s *settings) watches() bool { return !s.noWatch && s.cacheSize > 0 && s.cacheBytes > 0 }

func newSettings(target string, options []Option) (*settings, error) {
	s := &settings{
		cacheSize:    DefaultCacheSize,
		cacheBytes:   DefaultCacheBytes,
		maxStaleness: DefaultMaxStaleness,
		heartbeat:    DefaultHeartbeat,
		timeout:      DefaultTimeout,
	}
	for _, option := range options {
		option(s)
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	if s.clock == nil {
		s.clock = newSystemClock()
	}
	if err := s.check(target); err != nil {
		return nil, fmt.Errorf("tumbler: %w", err)
	}
	return s, nil
}

// plaintext reports whether keys would cross the connection unencrypted.
func (s *settings) plaintext() bool {
	return s.credentials == nil || s.credentials.Info().SecurityProtocol == "insecure"
}

func (s *settings) check(target string) error {
	switch {
	case target == "":
		return errors.New("target: must not be empty")
	case s.apiKey == "":
		return errors.New("WithAPIKey: is required")
	case !visible(s.apiKey):
		return errors.New("WithAPIKey: must be one key of visible ASCII characters")
	case s.projectsSet && !areValidProjects(s.projects.named):
		return errors.New("WithProjectID: must be one or more project ids, none of them empty")
	case s.projectsSet && s.projects.any:
		return errors.New("WithAnyProject: cannot be combined with WithProjectID")
	case s.insecure && !s.plaintext():
		return errors.New("WithInsecure: cannot be combined with WithCredentials")
	case s.plaintext() && !s.insecure && !isLoopback(target):
		return errors.New("WithCredentials: the target is not this machine, so keys would cross the network in plaintext; " +
			"use credentials, or WithInsecure if the network is trusted")
	case s.cacheSize < 0:
		return errors.New("WithCacheSize: must be 0 or more")
	case s.cacheBytes < 0:
		return errors.New("WithCacheBytes: must be 0 or more")
	case s.maxStaleness <= 0:
		return errors.New("WithMaxStaleness: must be more than 0")
	case s.heartbeat < shortestHeartbeat || s.heartbeat > longestHeartbeat:
		return errors.New("WithHeartbeat: must be 1 s to 1 h")
	case s.heartbeat >= s.maxStaleness:
		return errors.New("WithMaxStaleness: must be longer than WithHeartbeat")
	case s.timeout <= 0:
		return errors.New("WithTimeout: must be more than 0")
	case s.fixedTTLSet && !s.noWatch:
		return errors.New("WithFixedTTL: is only allowed with WithoutWatch")
	case s.fixedTTLSet && s.fixedTTL <= 0:
		return errors.New("WithFixedTTL: must be more than 0")
	}
	return nil
}

func visible(text string) bool {
	for place := range len(text) {
		if text[place] <= ' ' || text[place] > '~' {
			return false
		}
	}
	return true
}
