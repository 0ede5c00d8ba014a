package tumbler

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// streaming is how much of an answer may be written before it counts as one that streams, though it was never flushed.
const streaming = 64 << 10

var errKeyEnded = errors.New("tumbler: the key that let this request in is not valid any more")

// stream is an HTTP request while it is answered. It is held to its key from when its answer streams.
type stream struct {
	hold   func(end func(*refusal)) (release func())
	cancel context.CancelCauseFunc

	noting sync.Once
	mu     sync.Mutex // held while anything is written
	writer http.ResponseWriter
	sent   int64
	conn   net.Conn // set once it was taken over, by the handler or to be closed

	state   sync.Mutex
	release func()
	isOver  bool // the key has ended it, or the handler
	isEnded bool // the key has
	cutting sync.WaitGroup
}

// note has the stream end with its key from now on.
func (s *stream) note() {
	s.noting.Do(func() {
		release := s.hold(func(*refusal) { s.end() })
		s.state.Lock()
		defer s.state.Unlock()
		s.release = release
	})
}

// end breaks the answer off, whatever its handler is doing: to the peer it must not look like a whole one.
func (s *stream) end() {
	s.state.Lock()
	if s.isOver {
		s.state.Unlock()
		return
	}
	s.isOver, s.isEnded = true, true
	s.cutting.Add(1)
	s.state.Unlock()
	defer s.cutting.Done()
	s.cancel(errKeyEnded)
	control := http.NewResponseController(s.writer)
	past := time.Unix(1, 0)
	control.SetWriteDeadline(past) // a write that waits for the peer lets go; HTTP/2 resets the stream
	control.SetReadDeadline(past)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		if _, can := s.writer.(http.Hijacker); can {
			s.conn, _, _ = control.Hijack()
		}
	}
	if s.conn != nil {
		s.conn.Close()
	}
}

// finish notes that the handler has returned, or panics where an answer that has no connection of its own was broken off.
func (s *stream) finish() {
	s.state.Lock()
	release, ended := s.release, s.isEnded
	s.isOver = true
	s.state.Unlock()
	if release != nil {
		release()
	}
	if ended {
		s.cutting.Wait() // nothing may touch the writer once the handler has returned
		if s.conn == nil {
			panic(http.ErrAbortHandler)
		}
	}
}

func (s *stream) ended() bool {
	s.state.Lock()
	defer s.state.Unlock()
	return s.isEnded
}

// wrap returns what the handler is to write to; it is what the writer is: a Flusher, a Hijacker or neither.
func (s *stream) wrap() http.ResponseWriter {
	_, flushes := s.writer.(http.Flusher)
	_, hijacks := s.writer.(http.Hijacker)
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
	default:
		return plain
	}
}

type heldWriter struct{ s *stream }

func (w *heldWriter) Header() http.Header { return w.s.writer.Header() }

func (w *heldWriter) WriteHeader(status int) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if !w.s.ended() {
		w.s.writer.WriteHeader(status)
	}
}

func (w *heldWriter) Write(part []byte) (int, error) {
	s := w.s
	s.mu.Lock()
	s.sent += int64(len(part))
	long := s.sent > streaming
	s.mu.Unlock()
	if long {
		s.note()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended() {
		return 0, errKeyEnded
	}
	return s.writer.Write(part)
}

// ReadFrom keeps a file's own way to the connection open. It is an answer of a known length, and goes as a whole.
func (w *heldWriter) ReadFrom(from io.Reader) (int64, error) {
	readerFrom, can := w.s.writer.(io.ReaderFrom)
	if !can {
		return io.Copy(struct{ io.Writer }{w}, from)
	}
	if _, isFile := from.(*io.LimitedReader); !isFile {
		return io.Copy(struct{ io.Writer }{w}, from)
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.ended() {
		return 0, errKeyEnded
	}
	return readerFrom.ReadFrom(from)
}

// SetReadDeadline, SetWriteDeadline and EnableFullDuplex are what http.ResponseController looks for.
func (w *heldWriter) SetReadDeadline(deadline time.Time) error {
	if w.s.ended() {
		return errKeyEnded
	}
	return http.NewResponseController(w.s.writer).SetReadDeadline(deadline)
}

func (w *heldWriter) SetWriteDeadline(deadline time.Time) error {
	if w.s.ended() {
		return errKeyEnded
	}
	return http.NewResponseController(w.s.writer).SetWriteDeadline(deadline)
}

func (w *heldWriter) EnableFullDuplex() error {
	return http.NewResponseController(w.s.writer).EnableFullDuplex()
}

type heldFlusher struct{ stream *stream }

func (f heldFlusher) Flush() { f.FlushError() }

func (f heldFlusher) FlushError() error {
	f.stream.note()
	f.stream.mu.Lock()
	defer f.stream.mu.Unlock()
	if f.stream.ended() {
		return errKeyEnded
	}
	return http.NewResponseController(f.stream.writer).Flush()
}

type heldHijacker struct{ stream *stream }

func (h heldHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h.stream.note()
	h.stream.mu.Lock()
	defer h.stream.mu.Unlock()
	if h.stream.ended() {
		return nil, nil, errKeyEnded
	}
	conn, both, err := http.NewResponseController(h.stream.writer).Hijack()
	h.stream.conn = conn
	return conn, both, err
}
