package tumbler

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	tumblerv1 "tumbler.dev/go/gen/tumbler/v1"
)

// handling is a guarded gRPC service with one bidirectional method. over gets the error that its handler returned.
type handling struct {
	begun  chan struct{}
	over   chan error
	handle grpc.StreamHandler
}

func (h *handling) serve(t *testing.T, w *world, options ...GRPCOption) grpc.ClientStream {
	t.Helper()
	h.begun, h.over = make(chan struct{}, 1), make(chan error, 1)
	server := grpc.NewServer(grpc.StreamInterceptor(StreamServerInterceptor(w.verifier, options...)))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Service",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Talk", ServerStreams: true, ClientStreams: true,
			Handler: func(server any, stream grpc.ServerStream) error {
				h.begun <- struct{}{}
				err := h.handle(server, stream)
				h.over <- err
				return err
			},
		}},
	}, new(any))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx := metadata.AppendToOutgoingContext(context.Background(), "x-api-key", testKey(1, 'a'))
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Service/Talk")
	if err != nil {
		t.Fatal(err)
	}
	<-h.begun
	return stream
}

// speaks is a handler that sends a message every few milliseconds.
func speaks(_ any, stream grpc.ServerStream) error {
	for {
		if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// listens is a handler that receives messages. It returns nil only after an orderly half-close.
func listens(_ any, stream grpc.ServerStream) error {
	for {
		if err := stream.RecvMsg(&emptypb.Empty{}); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func waits(_ any, stream grpc.ServerStream) error {
	<-stream.Context().Done()
	return nil
}

func becomes(code tumblerv1.VerifyCode) func(*tumblerv1.VerifyResponse) {
	return func(a *tumblerv1.VerifyResponse) {
		setCode(a, code)
		a.Revision = 12
	}
}

func TestAGRPCStreamEndsWithItsKey(t *testing.T) {
	for name, handle := range map[string]grpc.StreamHandler{"speaks": speaks, "listens": listens, "waits": waits} {
		for code, want := range map[tumblerv1.VerifyCode]codes.Code{
			tumblerv1.VerifyCode_VERIFY_CODE_REVOKED:        codes.Unauthenticated,
			tumblerv1.VerifyCode_VERIFY_CODE_IP_NOT_ALLOWED: codes.PermissionDenied,
		} {
			t.Run(name+" "+code.String(), func(t *testing.T) {
				w, stream := listening(t)
				h := &handling{handle: handle}
				call := h.serve(t, w)
				w.server.answerWith(becomes(code))
				w.deliver(stream, changed("a", 11, testKey(1, 'a')))
				var err error
				for err == nil {
					err = call.RecvMsg(&emptypb.Empty{})
				}
				if status.Code(err) != want {
					t.Errorf("got %v", err)
				}
				if err := <-h.over; name != "waits" && status.Code(err) != want {
					t.Errorf("the handler was told %v", err)
				}
				w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
			})
		}
	}
}

func TestAGRPCStreamGoesOnWhereItsKeyIsStillGoodForItOrItShallNotEnd(t *testing.T) {
	for name, c := range map[string]struct {
		code tumblerv1.VerifyCode
		open int
	}{
		"still good": {tumblerv1.VerifyCode_VERIFY_CODE_VALID, 1}, "off": {tumblerv1.VerifyCode_VERIFY_CODE_REVOKED, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, stream := listening(t)
			h := &handling{handle: listens}
			call := h.serve(t, w, EndStreams(c.open > 0))
			w.server.answerWith(becomes(c.code))
			before, _ := w.server.calls()
			w.deliver(stream, changed("a", 11, testKey(1, 'a')))
			if c.open > 0 {
				w.eventually("it is asked", func() bool { now, _ := w.server.calls(); return now > before })
			}
			if open := w.verifier.sessions.len(); open != c.open {
				t.Errorf("%d are open", open)
			}
			call.CloseSend()
			if err := call.RecvMsg(&emptypb.Empty{}); !errors.Is(err, io.EOF) {
				t.Errorf("got %v", err)
			}
			w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
		})
	}
}

// web serves a handler behind the guard, and returns an answer that has started.
func web(t *testing.T, w *world, http2 bool, handler http.HandlerFunc, options ...HTTPOption) (*http.Response, error) {
	t.Helper()
	server := httptest.NewUnstartedServer(Middleware(w.verifier, options...)(handler))
	server.EnableHTTP2 = http2
	server.StartTLS()
	t.Cleanup(server.CloseClientConnections)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("X-API-Key", testKey(1, 'a'))
	answer, err := server.Client().Do(request)
	if err == nil {
		t.Cleanup(func() { answer.Body.Close() })
	}
	return answer, err
}

func TestAStreamingAnswerIsBrokenOff(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		for kind, goes := range map[string]func(http.ResponseWriter, *http.Request) error{
			"speaks": func(w http.ResponseWriter, _ *http.Request) error {
				for {
					if _, err := w.Write([]byte("word\n")); err != nil {
						return err
					}
					if err := http.NewResponseController(w).Flush(); err != nil {
						return err
					}
					time.Sleep(time.Millisecond)
				}
			},
			"waits": func(w http.ResponseWriter, r *http.Request) error {
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return context.Cause(r.Context())
			},
			"never flushes": func(w http.ResponseWriter, _ *http.Request) error {
				part := make([]byte, streaming+1)
				for {
					if _, err := w.Write(part); err != nil {
						return err
					}
				}
			},
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				w, stream := listening(t)
				over := make(chan error, 1)
				answer, err := web(t, w, http2, func(w http.ResponseWriter, r *http.Request) { over <- goes(w, r) })
				if err != nil {
					t.Fatal(err)
				}
				w.eventually("it is noted", func() bool { return w.verifier.sessions.len() == 1 })
				w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
				w.deliver(stream, changed("a", 11, testKey(1, 'a')))
				if _, err := io.Copy(io.Discard, answer.Body); err == nil {
					t.Error("it ended as if it were whole")
				}
				if err := <-over; err == nil {
					t.Error("the handler was told nothing")
				}
				w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
			})
		}
	}
}

func TestAStreamingAnswerGoesOnWhereItsKeyIsStillGoodForIt(t *testing.T) {
	w, stream := listening(t)
	done := make(chan struct{})
	answer, err := web(t, w, false, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		<-done
		w.Write([]byte("whole"))
	})
	if err != nil {
		t.Fatal(err)
	}
	before, _ := w.server.calls()
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_VALID))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	w.eventually("it is asked", func() bool { now, _ := w.server.calls(); return now > before })
	close(done)
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "whole" {
		t.Errorf("got %q, %v", body, err)
	}
	w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
}

func TestAnOrdinaryAnswerRunsToItsEnd(t *testing.T) {
	w, stream := listening(t)
	answer, err := web(t, w, false, func(to http.ResponseWriter, r *http.Request) {
		w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
		w.deliver(stream, changed("a", 11, testKey(1, 'a')))
		w.eventually("it is denied", func() bool { return !w.verify(testKey(1, 'a')).Valid })
		if r.Context().Err() != nil || w.verifier.sessions.len() > 0 {
			t.Error("it is held to its key")
		}
		to.Write([]byte("whole"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "whole" {
		t.Errorf("got %q, %v", body, err)
	}
}

func TestAConnectionThatWasTakenOverIsClosed(t *testing.T) {
	w, stream := listening(t)
	over := make(chan error, 1)
	answer, err := web(t, w, false, func(w http.ResponseWriter, _ *http.Request) {
		conn, both, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		both.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
		both.Flush()
		_, err = bufio.NewReader(conn).ReadByte()
		over <- err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	io.Copy(io.Discard, answer.Body)
	if <-over == nil {
		t.Error("the handler was told nothing")
	}
	w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
}

// hijackable is a writer that can be hijacked but not flushed.
type hijackable struct {
	http.ResponseWriter
	http.Hijacker
}

// unwrapping is a writer of another middleware that has nothing of its own: Unwrap leads to the writer below it.
type unwrapping struct{ http.ResponseWriter }

func (u unwrapping) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// flushing is a writer with the Flush that reports an error, and without http.Flusher's.
type flushing struct{ http.ResponseWriter }

func (flushing) FlushError() error { return nil }

// The handler's writer can be flushed and hijacked exactly if the server's can.
func TestTheHandlersWriterCanDoWhatTheServersCan(t *testing.T) {
	conn, _ := net.Pipe()
	defer conn.Close()
	recorder := httptest.NewRecorder()
	hijacker := &blocked{conn: conn}
	for name, c := range map[string]struct {
		writer           http.ResponseWriter
		flushes, hijacks bool
	}{
		"neither":           {opaque{recorder}, false, false},
		"flushes":           {recorder, true, false},
		"flushes, by error": {flushing{opaque{recorder}}, true, false},
		"hijacks":           {hijackable{opaque{recorder}, hijacker}, false, true},
		"both": {struct {
			http.ResponseWriter
			http.Flusher
			http.Hijacker
		}{recorder, recorder, hijacker}, true, true},
		"flushes, below another": {unwrapping{recorder}, true, false},
		"hijacks, below another": {unwrapping{hijackable{opaque{recorder}, hijacker}}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &heldResponse{
				hold: func(func(*refusal)) func() { return func() {} }, cancel: func(error) {}, writer: c.writer,
			}
			writer := s.wrap()
			if _, is := writer.(http.Flusher); is != c.flushes {
				t.Errorf("it is a Flusher: %v", is)
			}
			if _, is := writer.(http.Hijacker); is != c.hijacks {
				t.Errorf("it is a Hijacker: %v", is)
			}
			if err := http.NewResponseController(writer).Flush(); (err == nil) != c.flushes {
				t.Errorf("to flush it: %v", err)
			}
			if _, _, err := http.NewResponseController(writer).Hijack(); (err == nil) != c.hijacks {
				t.Errorf("to hijack it: %v", err)
			}
		})
	}
}

func TestWithStreamsLeftAloneAnAnswerOutlivesItsKey(t *testing.T) {
	w, stream := listening(t)
	done := make(chan struct{})
	answer, err := web(t, w, false, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		<-done
		w.Write([]byte("whole"))
	}, EndStreams(false))
	if err != nil {
		t.Fatal(err)
	}
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	close(done)
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "whole" {
		t.Errorf("got %q, %v", body, err)
	}
}

// upgrade takes the connection over and switches protocols.
func upgrade(t *testing.T, w http.ResponseWriter) net.Conn {
	t.Helper()
	conn, both, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return nil
	}
	both.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
	both.Flush()
	return conn
}

// What serves a connection after its handler has returned ends with the key too.
func TestAConnectionThatOutlivesItsHandlerDoesNotOutliveItsKey(t *testing.T) {
	for kind, serves := range map[string]func(net.Conn) error{
		"reads": func(conn net.Conn) error {
			_, err := conn.Read(make([]byte, 1))
			return err
		},
		"writes": func(conn net.Conn) error {
			for {
				if _, err := conn.Write([]byte("tick\n")); err != nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
		},
		"writes to a caller who does not read": func(conn net.Conn) error {
			for {
				if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		},
	} {
		for _, encrypted := range []bool{false, true} {
			t.Run(kind+" encrypted:"+strconv.FormatBool(encrypted), func(t *testing.T) {
				w, stream := listening(t)
				told := make(chan error, 1)
				returned := make(chan struct{})
				guarded := Middleware(w.verifier)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					conn := upgrade(t, w)
					go func() {
						told <- serves(conn)
						conn.Close()
					}()
				}))
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					guarded.ServeHTTP(w, r)
					close(returned)
				}))
				if encrypted {
					server.StartTLS()
				} else {
					server.Start()
				}
				defer server.Close()
				answer := begin(t, server)
				<-returned
				if open := w.verifier.sessions.len(); open != 1 {
					t.Errorf("%d are held", open)
				}
				w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_REVOKED))
				w.deliver(stream, changed("a", 11, testKey(1, 'a')))
				select {
				case err := <-told:
					if err == nil {
						t.Error("it ended by itself")
					}
				case <-time.After(patience):
					t.Error("the connection outlives its key")
				}
				io.Copy(io.Discard, answer.Body)
				w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
			})
		}
	}
}

// A connection that was taken over is held exactly until it is closed.
func TestAConnectionIsHeldUntilItIsClosed(t *testing.T) {
	w, stream := listening(t)
	conns := make(chan net.Conn, 1)
	answer, err := web(t, w, false, func(w http.ResponseWriter, _ *http.Request) { conns <- upgrade(t, w) })
	if err != nil {
		t.Fatal(err)
	}
	conn := <-conns
	before, _ := w.server.calls()
	w.server.answerWith(becomes(tumblerv1.VerifyCode_VERIFY_CODE_VALID))
	w.deliver(stream, changed("a", 11, testKey(1, 'a')))
	w.eventually("it is asked", func() bool { now, _ := w.server.calls(); return now > before })
	conn.Write([]byte("still here\n"))
	if line, err := bufio.NewReader(answer.Body).ReadString('\n'); err != nil || line != "still here\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if open := w.verifier.sessions.len(); open != 1 {
		t.Errorf("%d are held", open)
	}
	for range 2 {
		conn.Close()
		if open := w.verifier.sessions.len(); open != 0 {
			t.Errorf("%d are held", open)
		}
	}
}

// A handler that closes the connection before it returns leaves nothing.
func TestAConnectionThatItsHandlerClosesIsNotHeld(t *testing.T) {
	w, _ := listening(t)
	answer, err := web(t, w, false, func(w http.ResponseWriter, _ *http.Request) { upgrade(t, w).Close() })
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, answer.Body)
	w.eventually("nothing is left", func() bool { return w.verifier.sessions.len() == 0 })
}

// The sending side of a connection that was taken over can be closed alone, exactly if the server's can.
func TestAConnectionThatWasTakenOverCanBeHalfClosed(t *testing.T) {
	w, _ := listening(t)
	over := make(chan error, 1)
	answer, err := web(t, w, false, func(w http.ResponseWriter, _ *http.Request) {
		conn := upgrade(t, w)
		defer conn.Close()
		over <- conn.(interface{ CloseWrite() error }).CloseWrite()
		conn.Read(make([]byte, 1))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(answer.Body); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v", rest, err)
	}
	answer.Body.Close()
	pipe, peer := net.Pipe()
	defer peer.Close()
	defer pipe.Close()
	if _, can := new(heldResponse).keep(pipe).(interface{ CloseWrite() error }); can {
		t.Error("a pipe has no side to close")
	}
}

// A Verifier that closes ends connections whose handlers have returned.
func TestClosingTheVerifierEndsConnectionsThatWereTakenOver(t *testing.T) {
	w, _ := listening(t)
	conns := make(chan net.Conn, 1)
	if _, err := web(t, w, false, func(w http.ResponseWriter, _ *http.Request) { conns <- upgrade(t, w) }); err != nil {
		t.Fatal(err)
	}
	conn := <-conns
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	w.verifier.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("it goes on")
	}
}
