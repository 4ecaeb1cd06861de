// Package message is HTTP messages as the proxy handles them, whichever version of HTTP
// carried them: heads of slices into the buffers that they were read to, and the
// interfaces between the reader of a request and its sender.
//
// Invariants:
//   - Fields hold end-to-end fields only: what is for one connection (RFC 9110, 7.6.1)
//     is taken out when a message is read, and put in when one is written.
//   - Slices in a head are valid until its exchange ends, and are never changed:
//     another value is another slice.
package message

import (
	"io"
	"net/netip"
	"sync"
)

// Field is a header field; the name as it was sent.
type Field struct{ Name, Value []byte }

// Fields are the fields of a message in their order.
type Fields []Field

// Get returns the first value of a name, whatever its case; nil when there is none.
func (f Fields) Get(name string) []byte {
	for i := range f {
		if EqualFold(f[i].Name, name) {
			return f[i].Value
		}
	}
	return nil
}

// Last returns the last value of a name, whatever its case; nil when there is none.
func (f Fields) Last(name string) []byte {
	for i := len(f) - 1; i >= 0; i-- {
		if EqualFold(f[i].Name, name) {
			return f[i].Value
		}
	}
	return nil
}

// Has says whether there is a field of the name.
func (f Fields) Has(name string) bool {
	for i := range f {
		if EqualFold(f[i].Name, name) {
			return true
		}
	}
	return false
}

// Set makes the value the only one of its name.
func (f *Fields) Set(name string, value []byte) {
	list := *f
	for i := range list {
		if EqualFold(list[i].Name, name) {
			list[i].Value = value
			*f = append(list[:i+1], drop(list[i+1:], name)...)
			return
		}
	}
	f.Add(name, value)
}

// Add appends a field.
func (f *Fields) Add(name string, value []byte) {
	*f = append(*f, Field{Name: []byte(name), Value: value})
}

// Del takes all fields of the name out.
func (f *Fields) Del(name string) { *f = drop(*f, name) }

func drop(list Fields, name string) Fields {
	kept := list[:0]
	for _, x := range list {
		if !EqualFold(x.Name, name) {
			kept = append(kept, x)
		}
	}
	return kept
}

// EqualFold compares ASCII without regard to case.
func EqualFold(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(b) {
		if x, y := a[i], b[i]; x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return true
}

// Version is the version of HTTP that a message came by.
type Version uint8

// The versions.
const (
	HTTP10 Version = iota
	HTTP11
	HTTP2
)

// String is the word of request lines and logs.
func (v Version) String() string {
	switch v {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	}
	return "HTTP/2.0"
}

// Unknown is the Length of a body whose end is seen when it is there.
const Unknown = -1

// Request is a request's head.
type Request struct {
	Method []byte
	// Target is path and query as they were sent; "*" of OPTIONS.
	Target []byte
	// Host is the authority, as sent: a name in whatever case, maybe with a port. Empty of
	// an HTTP/1.0 request without one.
	Host   []byte
	Fields Fields
	// Length is that of the body in bytes, 0 for none, or Unknown.
	Length int64
	// Upgrade are the protocols that the client would rather speak on this connection once its
	// body has ended, as "websocket", separated by commas; nil for none.
	Upgrade []byte
	// Continue says that the client waits for 100 before it sends the body.
	Continue bool
	// Trailers says that the client takes trailers (TE: trailers).
	Trailers bool
	Version  Version
	// TLS says that the client's connection is encrypted. Client is its address, Local
	// the one that it came to.
	TLS           bool
	Client, Local netip.AddrPort
	// Session is what the handshake of the client's connection said; nil where there was none.
	Session *Session
}

// Path is the target without its query, Query what follows the question mark.
func (r *Request) Path() []byte {
	for i, c := range r.Target {
		if c == '?' {
			return r.Target[:i]
		}
	}
	return r.Target
}

// Query is what follows the question mark of the target, nil when there is none.
func (r *Request) Query() []byte {
	if n := len(r.Path()); n < len(r.Target) {
		return r.Target[n+1:]
	}
	return nil
}

// Response is a response's head.
type Response struct {
	Status int
	// Reason may be empty; HTTP/2 has none.
	Reason []byte
	Fields Fields
	// Length is that of the body in bytes, 0 for none, or Unknown. Of a response to HEAD
	// and of 304 it is what a GET would have had, for the field Content-Length only.
	Length int64
	// Upgrade is the protocol that a 101 changes to.
	Upgrade []byte
}

// Bodyless says whether the response has no body by its kind, whatever its fields say.
func (r *Response) Bodyless(method []byte) bool {
	return r.Status < 200 || r.Status == 204 || r.Status == 304 || string(method) == "HEAD"
}

// Downstream is one exchange as its client sees it. Its methods are called by one
// goroutine at a time, but for Read, which another may call while a response is written.
type Downstream interface {
	// Request is the head; fields of it may be set anew.
	Request() *Request
	// Read reads the request's body; io.EOF at its end. The first Read sends 100 to a
	// client that waits for it.
	io.Reader
	// Buffered is how many bytes of the body are here already, 0 when not known. Ready says
	// whether Read would return without waiting.
	Buffered() int
	Ready() bool
	// Trailers are those behind the request's body, once that has ended.
	Trailers() Fields
	// Respond sends the head. What it has no body for (Bodyless, Length 0) ends there.
	Respond(*Response) error
	// Write sends a part of the body; Flush has it leave.
	io.Writer
	Flush() error
	// Finish ends the body, with trailers if there are any.
	Finish(trailers Fields) error
	// Responded says whether a final head was sent.
	Responded() bool
	// Switch sends the head of a 101 and hands the connection over, with what had been
	// read behind the request. The request's body must have been read to its end. It is an
	// error where the version has no 101.
	Switch(*Response) (io.ReadWriteCloser, error)
	// Watch calls gone, once, when the client leaves, until stop is called. It is for long
	// waits: it may cost a goroutine. gone may be called from any.
	// When stop has returned, gone does not run, and will not.
	Watch(gone func()) (stop func())
	// StopReading has a Read that waits return an error; the rest of the body is not
	// wanted.
	StopReading()
	// Abort ends the exchange so that the client sees that it is broken.
	Abort()
}

// Until makes a call that is made no more, and has ended, when stop has returned: what it
// is about may be another exchange's by then.
func Until(fn func()) (call, stop func()) {
	var mu sync.Mutex
	over := false
	call = func() {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			fn()
		}
	}
	stop = func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
	}
	return call, stop
}
