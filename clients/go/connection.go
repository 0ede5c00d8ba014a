package tumbler

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	// serviceConfig spreads calls over all servers of the target by round robin, so if one is lost, calls go to the
	// others. gRPC itself retries calls that fail with UNAVAILABLE.
	serviceConfig = `{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{
		"name": [
			{"service": "tumbler.v1.ApiKeyService", "method": "Verify"},
			{"service": "tumbler.v1.ApiKeyService", "method": "BatchVerify"}
		],
		"retryPolicy": {
			"maxAttempts": 3,
			"initialBackoff": "0.05s",
			"maxBackoff": "0.5s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}]}`

	// largestAnswer leaves room above the server's own limit of 3 MiB; gRPC's default of 4 MiB leaves little.
	largestAnswer = 16 << 20

	maxConnectTime = 5 * time.Second
	pingAfter      = 10 * time.Second // the minimum of gRPC, and of the server
	maxPingTime    = 5 * time.Second

	// minReconnectInterval is the minimum time between two replacements of the channel. Reconnecting must not load a
	// server that is only slow.
	minReconnectInterval = 10 * time.Second

	// linger is how long a replaced channel stays open after the deadline of its last call.
	linger = time.Second
)

// connection is a channel to the servers that is replaced if they are silent for too long. If a server hangs while its
// kernel still acknowledges packets, the connection looks healthy.
type connection struct {
	dial    func() (*grpc.ClientConn, error)
	timeout time.Duration

	mu            sync.Mutex
	current       *grpc.ClientConn
	former        *grpc.ClientConn // the replaced channel, to be closed soon; nil: none
	reconnectedAt time.Time
	closed        bool
}

func connect(target string, s *settings) (*connection, error) {
	c := &connection{dial: func() (*grpc.ClientConn, error) { return dial(target, s) }, timeout: s.timeout}
	var err error
	c.current, err = c.dial()
	return c, err
}

func (c *connection) Invoke(ctx context.Context, method string, args, reply any, options ...grpc.CallOption) error {
	return c.channel().Invoke(ctx, method, args, reply, options...)
}

func (c *connection) NewStream(
	ctx context.Context, desc *grpc.StreamDesc, method string, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	return c.channel().NewStream(ctx, desc, method, options...)
}

func (c *connection) channel() *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// reconnect makes new connections for later calls, at most once in minReconnectInterval. The Watch stream reopens over
// them when the former channel closes.
func (c *connection) reconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.reconnectedAt.IsZero() && time.Since(c.reconnectedAt) < minReconnectInterval {
		return
	}
	channel, err := c.dial()
	if err != nil {
		return // unlikely: the same options worked before
	}
	if c.former != nil {
		c.former.Close()
	}
	former := c.current
	c.current, c.former, c.reconnectedAt = channel, former, time.Now()
	time.AfterFunc(c.timeout+linger, func() { former.Close() }) // fails only if it is closed already
}

func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.current.Close()
	if c.former != nil {
		c.former.Close()
	}
}

// dial returns a channel to the servers. It connects in the background.
func dial(target string, s *settings) (*grpc.ClientConn, error) {
	transport := s.credentials
	if transport == nil {
		transport = insecure.NewCredentials()
	}
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(newBearer(s.apiKey, s.plaintext())),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(), // ignore service configs from DNS
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestAnswer)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: maxConnectTime}),
		grpc.WithResolvers(listed("ipv4"), listed("ipv6")),
		// Pings close dead connections.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: maxPingTime}),
	)
}

// bearer sends the Verifier's own key with each call. The key is hidden in a closure, so that no print verb shows it.
type bearer struct {
	header    func() map[string]string
	plaintext bool
}

func newBearer(key string, plaintext bool) credentials.PerRPCCredentials {
	header := map[string]string{"authorization": "Bearer " + key}
	return bearer{func() map[string]string { return header }, plaintext}
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return b.header(), nil
}

func (b bearer) RequireTransportSecurity() bool { return !b.plaintext }
