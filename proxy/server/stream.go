package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
)

// stream adapts an exchange of an HTTP/2 connection to the proxy's interface.
type stream struct {
	w    http.ResponseWriter
	r    *http.Request
	rc   *http.ResponseController
	req  message.Request
	body io.ReadCloser
	// limits of waiting for the client; 0 for none.
	readTime, writeTime   time.Duration
	readTimer, writeTimer *time.Timer

	trailers  message.Fields
	ended     bool // the complete request body was read
	responded bool
	finished  bool
	headless  bool
	left      int64
	unsent    int  // bytes since the last Flush
	awaits    bool // writeTimer runs
	aborted   atomic.Bool

	k    *conn // is told when the client is waited for
	owed debt
	// evicted means that it was ended to make room for another client's; guarded by streamTable.mu.
	evicted bool
	// ending guards over, and the deadlines that expire sets.
	ending sync.Mutex
	over   bool
}

var _ message.Downstream = (*stream)(nil)

// errMalformed is for requests that are valid in HTTP/2 but not in HTTP/1.1: if they were forwarded, they could become
// two requests (RFC 9113, 10.3).
var errMalformed = errors.New("a method, path, host or length that is not allowed")

// newStream returns the exchange of a request.
// isTLS is of the connection: the scheme of a request is what its client says.
func newStream(w http.ResponseWriter, r *http.Request, client, local netip.AddrPort, isTLS bool,
	lim streamTimes) (*stream, error) {
	s := &stream{w: w, r: r, body: r.Body, rc: http.NewResponseController(w), readTime: lim.read, writeTime: lim.write}
	s.req = message.Request{
		Method: []byte(r.Method), Target: []byte(r.RequestURI), Host: []byte(r.Host), Length: r.ContentLength,
		Version: message.HTTP2, TLS: isTLS, Client: client, Local: local,
	}
	if !sendable(&s.req) || !lengthIs(r.Header["Content-Length"], r.ContentLength) {
		return nil, errMalformed
	}
	s.req.Fields = message.FieldsOf(r.Header)
	_, s.req.Trailers = r.Header["Te"] // its only value in HTTP/2
	if len(r.Trailer) > 0 {            // taken out by the server
		var names []byte
		for n := range r.Trailer {
			if len(names) > 0 {
				names = append(names, ", "...)
			}
			names = append(names, n...)
		}
		s.req.Fields = append(s.req.Fields, message.Field{Name: []byte("Trailer"), Value: names})
	}
	s.ended = r.ContentLength == 0
	return s, nil
}

// lengthIs reports whether a Content-Length, if there is one, is the length that the server assumed for the body (RFC
// 9113, 8.1.1).
func lengthIs(fields []string, length int64) bool {
	switch len(fields) {
	case 0:
		return true
	case 1:
		n, err := strconv.ParseUint(fields[0], 10, 63)
		return err == nil && int64(n) == length
	}
	return false
}

// sendable reports whether the parts of a request line are valid in HTTP/1.1.
func sendable(r *message.Request) bool {
	if !httpguts.ValidHeaderFieldName(string(r.Method)) || len(r.Target) == 0 {
		return false
	}
	if r.Target[0] != '/' && string(r.Target) != "*" {
		return false
	}
	for _, c := range r.Target {
		if c <= ' ' || c == 0x7f || c == '#' {
			return false
		}
	}
	return h1.IsHost(r.Host)
}

// Request implements message.Downstream.
func (s *stream) Request() *message.Request { return &s.req }

// Read implements message.Downstream. For a client that waits for status 100, the server sends it.
func (s *stream) Read(p []byte) (int, error) {
	if s.ended {
		return 0, io.EOF
	}
	if s.readTime > 0 {
		if s.readTimer == nil {
			s.readTimer = time.AfterFunc(s.readTime, func() { _ = s.rc.SetReadDeadline(time.Unix(1, 0)) })
		} else {
			s.readTimer.Reset(s.readTime)
		}
		defer s.readTimer.Stop()
		s.k.owe(&s.owed, &s.owed.body, true, 0)
	}
	n, err := s.body.Read(p)
	if s.readTime > 0 {
		s.k.owe(&s.owed, &s.owed.body, err == nil, n)
	}
	if err == io.EOF {
		s.ended = true
		s.trailers = message.FieldsOf(s.r.Trailer)
	}
	return n, err
}

// Patient lets Read wait for as long as the exchange lasts: the reader bounds it.
func (s *stream) Patient() { s.readTime = 0 }

// Buffered implements message.Downstream; it is not known.
func (s *stream) Buffered() int { return 0 }

// Ready implements message.Downstream.
func (s *stream) Ready() bool { return s.ended }

// Watch implements message.Downstream.
func (s *stream) Watch(gone func()) (stop func()) {
	gone, over := message.Until(gone)
	end := context.AfterFunc(s.r.Context(), gone)
	return func() {
		end()
		over()
	}
}

// Trailers implements message.Downstream.
func (s *stream) Trailers() message.Fields { return s.trailers }

// Responded implements message.Downstream.
func (s *stream) Responded() bool { return s.responded }

var errSecond = errors.New("HTTP/2: a second response")

// Respond implements message.Downstream.
func (s *stream) Respond(r *message.Response) error {
	if s.responded {
		return errSecond
	}
	h := s.w.Header()
	addFields(h, r.Fields)
	if r.Status < 200 { // 103 and others
		s.w.WriteHeader(r.Status)
		clear(h)
		return nil
	}
	s.responded = true
	s.headless = r.Bodyless(s.req.Method)
	s.left = r.Length
	if r.Length >= 0 && r.Status != http.StatusNoContent && (r.Length > 0 || !s.headless) {
		h.Set("Content-Length", strconv.FormatInt(r.Length, 10))
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // not to be guessed
	}
	s.w.WriteHeader(r.Status)
	if s.headless || r.Length == 0 {
		return s.Finish(nil)
	}
	return nil
}

// Write implements message.Downstream.
func (s *stream) Write(p []byte) (int, error) {
	if s.headless {
		return len(p), nil
	}
	if s.left >= 0 {
		if int64(len(p)) > s.left {
			s.Abort()
			return 0, errors.New("HTTP/2: a body that is longer than its Content-Length")
		}
		s.left -= int64(len(p))
	}
	// What stays in the server's buffer delays nobody.
	if s.unsent += len(p); s.unsent > serverBuffer {
		s.awaitWrite()
	}
	n, err := s.w.Write(p)
	s.wrote()
	if err != nil {
		s.Abort()
	}
	return n, err
}

// serverBuffer is how much of a response the server of x/net buffers.
const serverBuffer = 4 << 10

// awaitWrite bounds how long a client may read nothing, until wrote.
func (s *stream) awaitWrite() {
	switch {
	case s.writeTime <= 0:
		return
	case s.writeTimer == nil:
		s.writeTimer = time.AfterFunc(s.writeTime, func() { _ = s.rc.SetWriteDeadline(time.Unix(1, 0)) })
	default:
		s.writeTimer.Reset(s.writeTime)
	}
	s.awaits = true
	s.k.owe(&s.owed, &s.owed.response, true, 0)
}

func (s *stream) wrote() {
	if s.awaits {
		s.k.owe(&s.owed, &s.owed.response, false, 0)
		s.awaits = false
		s.writeTimer.Stop()
	}
}

// Flush implements message.Downstream.
func (s *stream) Flush() error {
	s.awaitWrite()
	defer s.wrote()
	s.unsent = 0
	return s.rc.Flush()
}

// Finish implements message.Downstream.
func (s *stream) Finish(trailers message.Fields) error {
	if s.finished {
		return nil
	}
	s.finished = true
	if !s.headless && s.left > 0 {
		s.Abort()
		return errors.New("HTTP/2: a body that is shorter than its Content-Length")
	}
	h := s.w.Header()
	for i := range trailers {
		name := http.TrailerPrefix + http.CanonicalHeaderKey(string(trailers[i].Name))
		h[name] = append(h[name], string(trailers[i].Value))
	}
	return nil
}

// errNoSwitch: HTTP/2 has no upgrades.
var errNoSwitch = errors.New("HTTP/2 has no 101")

// Switch implements message.Downstream.
func (s *stream) Switch(*message.Response) (io.ReadWriteCloser, error) { return nil, errNoSwitch }

// StopReading implements message.Downstream.
func (s *stream) StopReading() { _ = s.body.Close() }

// Abort implements message.Downstream: the stream is reset.
func (s *stream) Abort() { s.aborted.Store(true) }

// stop ends the timers and the waits for the client.
func (s *stream) stop() {
	s.ending.Lock()
	s.over = true
	s.ending.Unlock()
	s.k.owe(&s.owed, &s.owed.body, false, 0)
	s.k.owe(&s.owed, &s.owed.response, false, 0)
	for _, t := range []*time.Timer{s.readTimer, s.writeTimer} {
		if t != nil {
			t.Stop()
		}
	}
}

// broken ensures that the client notices an incomplete response.
func (s *stream) broken() bool { return s.aborted.Load() || !s.responded || !s.finished }
