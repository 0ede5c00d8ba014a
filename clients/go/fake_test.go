package tumbler

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// patience is how long a test waits for an expected event before it fails.
const patience = 20 * time.Second

var testTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// testKey returns a well-formed key. Its secret is one character, repeated.
func testKey(id int, secret byte) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	body := fmt.Sprintf("tmb_%016d_%s", id, strings.Repeat(string(secret), 43))
	check, rest := make([]byte, 6), crc32.ChecksumIEEE([]byte(body))
	for place := range check {
		check[5-place] = digits[rest%62]
		rest /= 62
	}
	return body + string(check)
}

// idOf returns the id of a key from testKey.
func idOf(key string) string { return key[4:20] }

// fakeServer is a server whose answers a test sets.
type fakeServer struct {
	tumblerv1.UnimplementedApiKeyServiceServer
	streams chan *fakeStream

	mu      sync.Mutex
	verify  func(*tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error)
	refuse  func(*tumblerv1.BatchVerifyRequest) error // nil: no batch fails as a whole
	singles []*tumblerv1.VerifyRequest
	batches []*tumblerv1.BatchVerifyRequest
	headers []metadata.MD
}

// fakeStream is one Watch stream, on the server's side.
type fakeStream struct {
	request  *tumblerv1.WatchRequest
	messages chan *tumblerv1.WatchResponse
	ending   chan error
	gone     <-chan struct{}
}

func (s *fakeServer) Watch(
	request *tumblerv1.WatchRequest, stream grpc.ServerStreamingServer[tumblerv1.WatchResponse],
) error {
	opened := &fakeStream{
		request:  request,
		messages: make(chan *tumblerv1.WatchResponse),
		ending:   make(chan error),
		gone:     stream.Context().Done(),
	}
	select {
	case s.streams <- opened:
	case <-opened.gone:
		return nil
	}
	for {
		select {
		case message := <-opened.messages:
			if err := stream.Send(message); err != nil {
				return err
			}
		case err := <-opened.ending:
			return err
		case <-opened.gone:
			return nil
		}
	}
}

func (s *fakeServer) Verify(ctx context.Context, request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
	header, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	s.singles = append(s.singles, request)
	s.headers = append(s.headers, header)
	verify := s.verify
	s.mu.Unlock()
	return verify(request)
}

func (s *fakeServer) BatchVerify(
	_ context.Context, request *tumblerv1.BatchVerifyRequest,
) (*tumblerv1.BatchVerifyResponse, error) {
	s.mu.Lock()
	s.batches = append(s.batches, request)
	verify, refuse := s.verify, s.refuse
	s.mu.Unlock()
	if refuse != nil {
		if err := refuse(request); err != nil {
			return nil, err
		}
	}
	response := &tumblerv1.BatchVerifyResponse{}
	for _, item := range request.GetRequests() {
		one, err := verify(item)
		if err != nil {
			one = &tumblerv1.VerifyResponse{}
		}
		response.Responses = append(response.Responses, one)
	}
	return response, nil
}

// answer sets the function that answers each Verify from now on.
func (s *fakeServer) answer(verify func(*tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verify = verify
}

// answerWith makes each Verify return goodAnswer, modified by a function.
func (s *fakeServer) answerWith(change func(*tumblerv1.VerifyResponse)) {
	s.answer(func(request *tumblerv1.VerifyRequest) (*tumblerv1.VerifyResponse, error) {
		response := goodAnswer(request)
		change(response)
		return response, nil
	})
}

// calls returns the numbers of Verify and BatchVerify calls so far.
func (s *fakeServer) calls() (singles, batches int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.singles), len(s.batches)
}

func (s *fakeServer) lastRequest() *tumblerv1.VerifyRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.singles[len(s.singles)-1]
}

// goodAnswer returns the answer for a valid key with the scope orders:read, at revision 10.
func goodAnswer(request *tumblerv1.VerifyRequest) *tumblerv1.VerifyResponse {
	return &tumblerv1.VerifyResponse{
		Valid:            true,
		Code:             tumblerv1.VerifyCode_VERIFY_CODE_VALID,
		KeyId:            idOf(request.GetKey()),
		ProjectId:        "acme",
		EnvironmentId:    "live",
		Name:             "a name",
		OwnerId:          "an owner",
		Scopes:           []string{"orders:read"},
		Metadata:         map[string]string{"plan": "pro"},
		CacheTtl:         durationpb.New(time.Minute),
		CheckTime:        timestamppb.New(testTime),
		Revision:         10,
		ConsistencyToken: "token-10",
	}
}

// setCode changes an answer to this code. The record gives the codes that depend on the demand, whatever a test demands.
func setCode(a *tumblerv1.VerifyResponse, code tumblerv1.VerifyCode) {
	a.Code, a.Valid = code, code == tumblerv1.VerifyCode_VERIFY_CODE_VALID
	switch code {
	case tumblerv1.VerifyCode_VERIFY_CODE_ENVIRONMENT_MISMATCH:
		a.EnvironmentId = "another"
	case tumblerv1.VerifyCode_VERIFY_CODE_IP_NOT_ALLOWED:
		a.AllowedCidrs = []string{"203.0.113.0/24"}
	case tumblerv1.VerifyCode_VERIFY_CODE_INSUFFICIENT_SCOPE:
		a.Scopes = []string{"another:scope"}
	}
}

// fakeClock is a clock that moves only when a test advances it.
type fakeClock struct {
	mu     sync.Mutex
	time   time.Duration
	timers map[*fakeTimer]bool
}

type fakeTimer struct {
	due time.Duration
	f   func()
}

func newFakeClock() *fakeClock { return &fakeClock{timers: make(map[*fakeTimer]bool)} }

func (c *fakeClock) now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.time
}

func (c *fakeClock) afterFunc(d time.Duration, f func()) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := &fakeTimer{c.time + d, f}
	c.timers[timer] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, timer)
	}
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time += d
	for timer := range c.timers {
		if c.time >= timer.due {
			delete(c.timers, timer)
			go timer.f()
		}
	}
}

// waits reports whether a timer is due after exactly d.
func (c *fakeClock) waits(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for timer := range c.timers {
		if timer.due == c.time+d {
			return true
		}
	}
	return false
}

// world is a Verifier with its server and its clock.
type world struct {
	*testing.T
	server   *fakeServer
	listener net.Listener
	grpc     *grpc.Server
	clock    *fakeClock
	logs     *logs
	verifier *Verifier
	silence  time.Duration
}

// logs collects log lines.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var ownKey = testKey(999, 'k')

func newWorld(t *testing.T, options ...Option) *world {
	t.Helper()
	w := &world{
		T:      t,
		server: &fakeServer{streams: make(chan *fakeStream)},
		clock:  newFakeClock(),
		logs:   new(logs),
	}
	w.server.answerWith(func(*tumblerv1.VerifyResponse) {})
	w.serve("127.0.0.1:0")
	t.Cleanup(func() { w.grpc.Stop() })
	options = append([]Option{
		WithAPIKey(ownKey),
		WithTimeout(10 * patience), // a test's own patience ends first
		WithLogger(slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))),
		func(s *settings) { s.clock = w.clock },
	}, options...)
	options = append(options, func(s *settings) { w.silence = maxSilence(s.heartbeat) })
	verifier, err := NewVerifier(w.listener.Addr().String(), options...)
	if err != nil {
		t.Fatal(err)
	}
	w.verifier = verifier
	t.Cleanup(func() { verifier.Close() })
	return w
}

// listening returns a world whose Verifier has processed its stream's first heartbeat, and that stream.
func listening(t *testing.T, options ...Option) (*world, *fakeStream) {
	t.Helper()
	w := newWorld(t, options...)
	stream := w.stream()
	w.deliver(stream, &tumblerv1.WatchResponse{Cursor: "begun"})
	return w, stream
}

func (w *world) serve(address string) {
	w.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	w.listener, w.grpc = listener, grpc.NewServer()
	tumblerv1.RegisterApiKeyServiceServer(w.grpc, w.server)
	go w.grpc.Serve(listener)
}

// stream returns the next stream that the Verifier opens. It advances the clock over the pause before.
func (w *world) stream() *fakeStream {
	w.Helper()
	deadline := time.After(patience)
	for {
		select {
		case stream := <-w.server.streams:
			return stream
		case <-time.After(time.Millisecond):
			// The pause before an attempt is random. The clock must not move while a stream is being opened:
			// freshness counts from the request.
			if !w.clock.waits(w.silence) {
				w.clock.advance(10 * time.Millisecond)
			}
		case <-deadline:
			w.Fatal("no stream was opened")
		}
	}
}

// say sends a message, and returns when the Verifier has processed it.
func (w *world) deliver(stream *fakeStream, message *tumblerv1.WatchResponse) {
	w.Helper()
	w.send(stream, message)
	w.eventually("the message is handled", func() bool { return w.verifier.cache.position().cursor == message.GetCursor() })
}

func (w *world) send(stream *fakeStream, message *tumblerv1.WatchResponse) {
	w.Helper()
	select {
	case stream.messages <- message:
	case <-stream.gone:
		w.Fatal("the stream is gone")
	}
}

func (w *world) end(stream *fakeStream, err error) {
	w.Helper()
	select {
	case stream.ending <- err:
	case <-stream.gone:
		w.Fatal("the stream is gone")
	}
}

// gone waits until the Verifier has closed a stream.
func (w *world) gone(stream *fakeStream) {
	w.Helper()
	select {
	case <-stream.gone:
	case <-time.After(patience):
		w.Fatal("the stream goes on")
	}
}

func (w *world) eventually(what string, holds func() bool) {
	w.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("it never came to pass that %s", what)
		}
	}
}

func (w *world) verify(key string, options ...VerifyOption) *Verification {
	w.Helper()
	found, err := w.verifier.Verify(context.Background(), key, options...)
	if err != nil {
		w.Fatal(err)
	}
	return found
}

// expect verifies a key, and checks the verdict's code and whether it came from the cache.
func (w *world) expect(code Code, cached bool, key string, options ...VerifyOption) {
	w.Helper()
	found := w.verify(key, options...)
	if found.Code != code || found.Cached != cached || found.Valid != (code == CodeValid) {
		w.Errorf("got %v (valid: %v, cached: %v), want %v (cached: %v)", found.Code, found.Valid, found.Cached, code, cached)
	}
}

func changed(cursor string, revision int64, keys ...string) *tumblerv1.WatchResponse {
	message := &tumblerv1.WatchResponse{Cursor: cursor}
	for place, key := range keys {
		message.Events = append(message.Events, &tumblerv1.KeyEvent{
			Revision: revision + int64(place),
			Type:     tumblerv1.KeyEventType_KEY_EVENT_TYPE_UPDATED,
			KeyId:    idOf(key),
		})
	}
	return message
}

// heartbeat returns a heartbeat that confirms the instant at which its stream had this age.
func heartbeat(age time.Duration) *tumblerv1.WatchResponse {
	return &tumblerv1.WatchResponse{Cursor: "beat", StreamAge: durationpb.New(age)}
}
