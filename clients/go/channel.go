package tumbler

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	// retries has gRPC itself repeat a call that did not get through.
	retries = `{"methodConfig": [{
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

	// largestAnswer leaves room for a full batch of the largest records; gRPC's own limit would refuse one.
	largestAnswer = 64 << 20

	connectAtMost = 5 * time.Second
	pingAfter     = 10 * time.Second // gRPC's own least
	pingAtMost    = 5 * time.Second
)

// connect returns a channel to the server. It connects in the background.
func connect(target string, s *settings) (*grpc.ClientConn, error) {
	transport := s.credentials
	if transport == nil {
		transport = insecure.NewCredentials()
	}
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}
	return grpc.NewClient(target,
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(newBearer(s.apiKey, s.plaintext())),
		grpc.WithDefaultServiceConfig(retries),
		grpc.WithDisableServiceConfig(), // a name server has no say in it
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestAnswer)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: connectAtMost}),
		// A connection that leads nowhere any more ends by this. Longer than the stream may be silent, so that a
		// server whose heartbeats come never sees a ping, which it would resent.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:    max(pingAfter, silence(s.heartbeat)),
			Timeout: pingAtMost,
		}),
	)
}

// bearer sends the Verifier's own key with each call. It is hidden in a function, which no way of printing shows.
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
