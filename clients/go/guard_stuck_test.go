package tumbler

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// opaque is a writer of another middleware that hides the writer below it: it has no Unwrap method.
type opaque struct{ http.ResponseWriter }

// floods writes until a write fails.
func floods(w io.Writer) {
	part := make([]byte, 1<<20)
	for {
		if _, err := w.Write(part); err != nil {
			return
		}
	}
}

// begin sends a request, and returns when its answer has started. It does not read the body.
func begin(t *testing.T, server *httptest.Server) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-API-Key", testKey(1, 'a'))
	answer, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return answer
}

func serveTLS(t *testing.T, http2 bool, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = http2
	server.StartTLS()
	t.Cleanup(server.CloseClientConnections)
	return server
}

// stuck lists ways in which an answer can be stuck.
var stuck = map[string]func(w http.ResponseWriter, silent io.Reader){
	"a silent source": func(w http.ResponseWriter, silent io.Reader) { io.Copy(w, silent) },
	"a silent source with an end": func(w http.ResponseWriter, silent io.Reader) {
		io.Copy(w, io.LimitReader(silent, 1<<30))
	},
	"a caller who does not read": func(w http.ResponseWriter, _ io.Reader) { floods(w) },
	"a handler that waits":       func(_ http.ResponseWriter, silent io.Reader) { silent.Read(make([]byte, 1)) },
}

// A stuck answer delays neither the end of the key's other streams nor the Verifier's Close.
func TestAStuckAnswerHoldsUpNoEnd(t *testing.T) {
	for outer, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"plain":  func(w http.ResponseWriter) http.ResponseWriter { return w },
		"opaque": func(w http.ResponseWriter) http.ResponseWriter { return opaque{w} },
	} {
		for name, goes := range stuck {
			t.Run(outer+" "+name, func(t *testing.T) {
				w, stream := listening(t)
				silent, speak := io.Pipe()
				defer speak.Close()
				guard := Middleware(w.verifier)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Write(make([]byte, streaming+1))
					goes(w, silent)
				}))
				server := serveTLS(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					guard.ServeHTTP(wrap(w), r)
				}))
				defer server.CloseClientConnections()
				for range 2 {
					begin(t, server)
				}
				h := &handling{handle: waits}
				call := h.serve(t, w)
				w.eventually("they are noted", func() bool { return w.verifier.sessions.len() == 3 })
				if strings.Contains(name, "caller") {
					w.eventually("they wait for the caller", func() bool {
						return strings.Count(goroutines("tumbler.dev/go.(*heldWriter)"), "waitWrite") == 2
					})
				}
				w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
				w.deliver(stream, changed("a", 11, testKey(1, 'a')))
				if err := call.RecvMsg(&emptypb.Empty{}); status.Code(err) != codes.Unauthenticated {
					t.Errorf("got %v", err)
				}
				closed := make(chan struct{})
				go func() {
					w.verifier.Close()
					close(closed)
				}()
				select {
				case <-closed:
				case <-time.After(patience):
					t.Fatal("the Verifier does not close")
				}
			})
		}
	}
}

// full is a log handler that blocks, as if its disk or reader were stuck.
type full struct {
	slog.Handler
	free <-chan struct{}
}

func (f full) Handle(_ context.Context, record slog.Record) error {
	if record.Message == "tumbler: denied" {
		<-f.free
	}
	return nil
}

// A stuck log does not delay the end of streams either.
func TestAStuckLogHoldsUpNoEnd(t *testing.T) {
	free := make(chan struct{})
	defer close(free)
	w, stream := listening(t, WithLogger(slog.New(full{slog.DiscardHandler, free})))
	calls := make([]grpc.ClientStream, 3)
	for one := range calls {
		h := &handling{handle: waits}
		calls[one] = h.serve(t, w)
	}
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	for _, call := range calls {
		if err := call.RecvMsg(&emptypb.Empty{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v", err)
		}
	}
	w.verifier.Close()
}

// The caller sees an answer broken off even if its handler continues.
func TestAnAnswerIsBrokenOffThoughItsHandlerGoesOn(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		for kind, goes := range map[string]func(http.ResponseWriter, io.Reader){
			"in a silent source": func(w http.ResponseWriter, silent io.Reader) { io.Copy(w, io.LimitReader(silent, 1<<30)) },
			"after a write": func(w http.ResponseWriter, silent io.Reader) {
				floods(w)
				silent.Read(make([]byte, 1))
			},
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				w, stream := listening(t)
				silent, speak := io.Pipe()
				defer speak.Close()
				server := serveTLS(t, http2, Middleware(w.verifier)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.(http.Flusher).Flush()
					goes(w, silent)
				})))
				answer := begin(t, server)
				if kind == "after a write" {
					w.eventually("it is being written", func() bool { return goroutines("tumbler.dev/go.(*heldWriter)") != "" })
				}
				w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
				w.deliver(stream, changed("a", 11, testKey(1, 'a')))
				broken := make(chan error, 1)
				go func() {
					_, err := io.Copy(io.Discard, answer.Body)
					broken <- err
				}()
				select {
				case err := <-broken:
					if err == nil {
						t.Error("it ended as if it were whole")
					}
				case <-time.After(patience):
					t.Error("it goes on")
				}
			})
		}
	}
}

// The connection is closed even if another middleware's writer hides it behind Unwrap, and the handler continues.
func TestAnAnswerBehindAnUnwrappingWriterIsBrokenOff(t *testing.T) {
	w, stream := listening(t)
	silent, speak := io.Pipe()
	defer speak.Close()
	guard := Middleware(w.verifier)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(make([]byte, streaming+1))
		io.Copy(w, silent)
	}))
	answer := begin(t, serveTLS(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		guard.ServeHTTP(unwrapping{w}, r)
	})))
	w.eventually("it is noted", func() bool { return w.verifier.sessions.len() == 1 })
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	broken := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, answer.Body)
		broken <- err
	}()
	select {
	case err := <-broken:
		if err == nil {
			t.Error("it ended as if it were whole")
		}
	case <-time.After(patience):
		t.Error("it goes on")
	}
}

// files serves one file. over gets a value whenever its handler has returned.
func files(t *testing.T, w *world, http2 bool, content []byte) (server *httptest.Server, over <-chan struct{}) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	returned := make(chan struct{}, 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { returned <- struct{}{} }()
		http.ServeFile(w, r, path)
	})
	return serveTLS(t, http2, Middleware(w.verifier)(handler)), returned
}

func TestAFileThatIsLongIsBrokenOff(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			w, stream := listening(t)
			server, over := files(t, w, http2, make([]byte, 64<<20))
			answer := begin(t, server)
			w.eventually("it is noted", func() bool { return w.verifier.sessions.len() == 1 })
			w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
			w.deliver(stream, changed("a", 11, testKey(1, 'a')))
			<-over // although the caller does not read
			if n, err := io.Copy(io.Discard, answer.Body); err == nil {
				t.Errorf("all %d bytes came", n)
			}
		})
	}
}

func TestAFileOverAnUnencryptedConnectionIsBrokenOff(t *testing.T) {
	w, stream := listening(t)
	tls, over := files(t, w, false, make([]byte, 64<<20))
	server := httptest.NewServer(tls.Config.Handler)
	defer server.Close()
	answer := begin(t, server)
	w.eventually("it is noted", func() bool { return w.verifier.sessions.len() == 1 })
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	<-over
	if n, err := io.Copy(io.Discard, answer.Body); err == nil {
		t.Errorf("all %d bytes came", n)
	}
}

// A file arrives complete, over TLS and over plaintext.
func TestAFileIsServedWhole(t *testing.T) {
	for _, size := range []int{0, 1, streaming, streaming + 1, 3*streaming + 7} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			content := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
			w, _ := listening(t)
			tls, over := files(t, w, false, content)
			plain := httptest.NewServer(tls.Config.Handler)
			defer plain.Close()
			for _, server := range []*httptest.Server{tls, plain} {
				got, err := io.ReadAll(begin(t, server).Body)
				<-over
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d bytes came, %v", len(got), err)
				}
			}
			w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
		})
	}
}

// late is a writer on which setting a later deadline takes until the end has set its own.
type late struct {
	http.ResponseWriter
	meanwhile func()
	past      chan struct{}
	last      time.Time
}

func (l *late) SetReadDeadline(time.Time) error { return nil }

func (l *late) SetWriteDeadline(deadline time.Time) error {
	if deadline.After(time.Unix(1, 0)) {
		l.meanwhile()
		<-l.past
		l.last = deadline
	} else {
		l.last = deadline
		l.past <- struct{}{}
	}
	return nil
}

// A deadline that a handler sets while its stream ends does not undo the end.
func TestADeadlineDoesNotOutliveTheKey(t *testing.T) {
	writer := &late{ResponseWriter: httptest.NewRecorder(), past: make(chan struct{}, 2)}
	s := &heldResponse{cancel: func(error) {}, writer: writer}
	writer.meanwhile = s.end
	err := (&heldWriter{s}).SetWriteDeadline(time.Now().Add(time.Hour))
	s.cutting.Wait()
	if err == nil || writer.last.After(time.Unix(1, 0)) {
		t.Errorf("it was told %v, and writes until %v", err, writer.last)
	}
}

// blocked is a writer that waits for the caller to read, whatever the guard does. It has only a connection to close.
type blocked struct {
	http.ResponseWriter
	begun, read chan struct{}
	conn        net.Conn
}

func (b *blocked) Write(part []byte) (int, error) {
	close(b.begun)
	<-b.read
	return len(part), nil
}

func (b *blocked) Hijack() (net.Conn, *bufio.ReadWriter, error) { return b.conn, nil, nil }

// The end does not wait for a write that cannot be interrupted. After that write, the writer closes the connection.
func TestAWriteThatOutlivesTheKeyIsTheLast(t *testing.T) {
	conn, caller := net.Pipe()
	writer := &blocked{httptest.NewRecorder(), make(chan struct{}), make(chan struct{}), conn}
	s := &heldResponse{
		hold: func(func(*refusal)) func() { return func() {} }, cancel: func(error) {}, writer: writer,
	}
	wrote := make(chan int)
	go func() {
		n, _ := (&heldWriter{s}).Write(make([]byte, 3*streaming))
		wrote <- n
	}()
	<-writer.begun
	s.end()
	s.cutting.Wait()
	close(writer.read)
	if n := <-wrote; n != streaming {
		t.Errorf("%d bytes were written", n)
	}
	if _, err := caller.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the caller sees %v", err)
	}
}

// direct is a writer with its own ReadFrom, during which the answer ends.
type direct struct {
	http.ResponseWriter
	meanwhile func()
}

func (d *direct) ReadFrom(from io.Reader) (int64, error) {
	d.meanwhile()
	return io.Copy(io.Discard, from)
}

// At most one part of a file is written after the end.
func TestAPartOfAFileThatOutlivesTheKeyIsTheLast(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(3 * streaming); err != nil {
		t.Fatal(err)
	}
	writer := &direct{ResponseWriter: httptest.NewRecorder()}
	s := &heldResponse{
		hold: func(func(*refusal)) func() { return func() {} }, cancel: func(error) {}, writer: writer,
	}
	writer.meanwhile = s.end
	if n, err := (&heldWriter{s}).ReadFrom(io.LimitReader(file, 1<<30)); n != streaming || err == nil {
		t.Errorf("%d bytes were written, %v", n, err)
	}
}
