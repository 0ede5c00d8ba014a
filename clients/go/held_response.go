package tumbler

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// streaming is the length beyond which an answer counts as a stream even if it was never flushed.
const streaming = 64 << 10

var errKeyEnded = errors.New("tumbler: the response was aborted: its API key is no longer valid")

// heldResponse is an HTTP request while it is answered. It ends with its key from the moment when its answer streams.
// If the handler takes over the connection, it lasts until the connection is closed, even if the handler returns before.
//
// Ending it never waits for the handler, for the peer, or for the source of the answer: it only tries to lock mu.
type heldResponse struct {
	hold   func(end func(*refusal)) (release func())
	cancel context.CancelCauseFunc

	noting sync.Once
	sent   atomic.Int64
	mu     sync.Mutex // held during writes, so for as long as the peer does not read
	writer http.ResponseWriter

	state   sync.Mutex // never held while anything blocks
	release func()
	conn    net.Conn // set when it is taken over, by the handler or by cut
	isKept  bool     // the handler has taken the connection over, and not closed it
	isOver  bool     // ended by the key or by the handler
	isEnded bool     // ended by the key
	cutting sync.WaitGroup
}

// note makes the stream end with its key from now on.
func (s *heldResponse) note() {
	s.noting.Do(func() {
		release := s.hold(func(*refusal) { s.end() })
		s.state.Lock()
		defer s.state.Unlock()
		s.release = release
	})
}

// end breaks off the answer, whatever its handler is doing. After it returns, new writes fail. The connection is closed
// in a goroutine of its own, because that may take a while.
func (s *heldResponse) end() {
	s.state.Lock()
	if s.isOver {
		s.state.Unlock()
		return
	}
	s.isOver, s.isEnded = true, true
	s.cutting.Add(1)
	s.state.Unlock()
	s.cancel(errKeyEnded)
	go func() {
		defer s.cutting.Done()
		if conn := s.taken(); conn != nil {
			_ = conn.SetDeadline(past) // the handler may have returned, so the writer is not touched
		} else {
			s.expire()
		}
		s.cut()
	}()
}

// past is a deadline that makes blocked reads and writes fail.
var past = time.Unix(1, 0)

// expire makes blocked writes and reads fail, by deadlines in the past. HTTP/2 resets the stream. A writer that knows no
// deadlines is cut only.
func (s *heldResponse) expire() {
	control := http.NewResponseController(s.writer)
	_ = control.SetWriteDeadline(past)
	_ = control.SetReadDeadline(past)
}

// cut closes the connection, so that the answer does not look complete to the peer. During a write it does nothing: the
// writer calls cut afterwards.
func (s *heldResponse) cut() {
	if conn := s.taken(); conn != nil {
		conn.Close()
		return
	}
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if s.taken() != nil {
		return
	}
	if conn, _, err := http.NewResponseController(s.writer).Hijack(); err == nil {
		s.take(conn)
		conn.Close()
	}
}

// writing calls write, which sends size bytes of the answer to the peer, unless the key has ended the stream.
func (s *heldResponse) writing(size int64, write func() error) error {
	if s.sent.Add(size) > streaming {
		s.note()
	}
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		if s.ended() {
			s.cut() // end may have come during the write
		}
	}()
	if s.ended() {
		return errKeyEnded
	}
	return write()
}

// finish records that the handler has returned. It panics with http.ErrAbortHandler if the answer was broken off but
// has no connection of its own to close.
func (s *heldResponse) finish() {
	s.state.Lock()
	isKept := s.isKept
	s.state.Unlock()
	if !isKept {
		s.leave()
	}
	if s.ended() {
		s.cutting.Wait() // nothing may touch the writer after the handler has returned
		if s.taken() == nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// leave keeps the key from ending the response from now on.
func (s *heldResponse) leave() {
	s.state.Lock()
	release := s.release
	s.isKept, s.isOver = false, true
	s.state.Unlock()
	if release != nil {
		release()
	}
}

func (s *heldResponse) ended() bool {
	s.state.Lock()
	defer s.state.Unlock()
	return s.isEnded
}

func (s *heldResponse) take(conn net.Conn) {
	s.state.Lock()
	defer s.state.Unlock()
	s.conn = conn
}

// keep takes the connection over for the handler, and returns it for the handler to close.
func (s *heldResponse) keep(conn net.Conn) net.Conn {
	s.state.Lock()
	defer s.state.Unlock()
	s.conn, s.isKept = conn, true
	held := &heldConn{conn, s}
	if closer, can := conn.(halfCloser); can {
		return heldHalfCloser{held, closer}
	}
	return held
}

func (s *heldResponse) taken() net.Conn {
	s.state.Lock()
	defer s.state.Unlock()
	return s.conn
}

// wrap returns the writer for the handler. It is a Flusher and a Hijacker exactly if http.ResponseController can flush
// and hijack the original writer.
func (s *heldResponse) wrap() http.ResponseWriter {
	flushes := reaches[http.Flusher](s.writer) || reaches[interface{ FlushError() error }](s.writer)
	hijacks := reaches[http.Hijacker](s.writer)
	plain := &heldWriter{s}
	switch {
	case flushes && hijacks:
		return struct {
			*heldWriter
			heldFlusher
			heldHijacker
		}{plain, heldFlusher{s}, heldHijacker{s}}
	case flushes:
		return struct {
			*heldWriter
			heldFlusher
		}{plain, heldFlusher{s}}
	case hijacks:
		return struct {
			*heldWriter
			heldHijacker
		}{plain, heldHijacker{s}}
	default:
		return plain
	}
}

// reaches reports whether the writer is a T, or wraps one (http.ResponseController explains Unwrap).
func reaches[T any](writer http.ResponseWriter) bool {
	for {
		if _, is := writer.(T); is {
			return true
		}
		wrapping, can := writer.(interface{ Unwrap() http.ResponseWriter })
		if !can {
			return false
		}
		writer = wrapping.Unwrap()
	}
}

type heldWriter struct{ s *heldResponse }

func (w *heldWriter) Header() http.Header { return w.s.writer.Header() }

func (w *heldWriter) WriteHeader(status int) {
	// Its signature has no error; after the end, the next Write returns it.
	_ = w.s.writing(0, func() error {
		w.s.writer.WriteHeader(status)
		return nil
	})
}

// Write writes in parts, so that at most one part is written after the end.
func (w *heldWriter) Write(all []byte) (written int, err error) {
	for {
		part := all[written:min(len(all), written+streaming)]
		var n int
		err = w.s.writing(int64(len(part)), func() (err error) {
			n, err = w.s.writer.Write(part)
			return err
		})
		written += n
		if err != nil || written == len(all) {
			return written, err
		}
	}
}

// ReadFrom uses the writer's own ReadFrom (sendfile) for a file behind an io.LimitedReader, in parts. Reading from
// other sources may block, and mu must not be held meanwhile.
func (w *heldWriter) ReadFrom(from io.Reader) (copied int64, err error) {
	to, can := w.s.writer.(io.ReaderFrom)
	limited, isLimited := from.(*io.LimitedReader)
	if !can || !isLimited || !isFile(limited.R) {
		return io.Copy(struct{ io.Writer }{w}, from)
	}
	for limited.N > 0 {
		part := min(limited.N, streaming)
		var n int64
		err = w.s.writing(part, func() (err error) {
			n, err = to.ReadFrom(&io.LimitedReader{R: limited.R, N: part})
			return err
		})
		w.s.sent.Add(n - part)
		limited.N -= n
		copied += n
		if err != nil || n < part {
			break
		}
	}
	return copied, err
}

func isFile(from io.Reader) bool {
	file, is := from.(*os.File)
	if !is {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode().IsRegular()
}

// SetReadDeadline, SetWriteDeadline and EnableFullDuplex are methods that http.ResponseController looks for.
func (w *heldWriter) SetReadDeadline(deadline time.Time) error {
	return w.setting(func() error { return http.NewResponseController(w.s.writer).SetReadDeadline(deadline) })
}

func (w *heldWriter) SetWriteDeadline(deadline time.Time) error {
	return w.setting(func() error { return http.NewResponseController(w.s.writer).SetWriteDeadline(deadline) })
}

func (w *heldWriter) setting(set func() error) error {
	if w.s.ended() {
		return errKeyEnded
	}
	err := set()
	if w.s.ended() {
		w.s.expire() // the stream ended meanwhile, and its deadline counts
		return errKeyEnded
	}
	return err
}

func (w *heldWriter) EnableFullDuplex() error {
	return http.NewResponseController(w.s.writer).EnableFullDuplex()
}

type heldFlusher struct{ response *heldResponse }

func (f heldFlusher) Flush() { _ = f.FlushError() } // the signature has no error

func (f heldFlusher) FlushError() error {
	f.response.note()
	return f.response.writing(0, func() error { return http.NewResponseController(f.response.writer).Flush() })
}

type heldHijacker struct{ response *heldResponse }

func (h heldHijacker) Hijack() (conn net.Conn, both *bufio.ReadWriter, err error) {
	h.response.note()
	err = h.response.writing(0, func() (err error) {
		if conn, both, err = http.NewResponseController(h.response.writer).Hijack(); err == nil {
			conn = h.response.keep(conn)
		}
		return err
	})
	return conn, both, err
}

// heldConn is a connection that a handler has taken over.
type heldConn struct {
	net.Conn
	response *heldResponse
}

// Close closes the connection. Its key has nothing to end any more.
func (c *heldConn) Close() error {
	defer c.response.leave()
	return c.Conn.Close()
}

// halfCloser is a connection whose sending side can be closed alone, TCP or TLS for example.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

type heldHalfCloser struct {
	*heldConn
	closer halfCloser
}

func (c heldHalfCloser) CloseWrite() error { return c.closer.CloseWrite() }
