// Package message represents HTTP messages as the proxy handles them, independently of the version of HTTP: heads made
// of slices into the receive buffers, and the interfaces between the reader of a request and its sender.
//
// Invariants:
//   - Fields contain only end-to-end fields: those of one connection (RFC 9110, 7.6.1)
//     are removed when a message is read, and added when one is written.
//   - Slices in a head are valid until its exchange ends, and are never changed:
//     a new value is a new slice.
package message

import (
	"io"
	"net/netip"
	"sync"
)

// Field is a header field; the name is as sent.
type Field struct{ Name, Value []byte }

// Fields are the fields of a message in their order.
type Fields []Field

// Get returns the first value of a name, ignoring case; nil if there is none.
func (f Fields) Get(name string) []byte {
	for i := range f {
		if EqualFold(f[i].Name, name) {
			return f[i].Value
		}
	}
	return nil
}

// Last returns the last value of a name, ignoring case; nil if there is none.
func (f Fields) Last(name string) []byte {
	for i := len(f) - 1; i >= 0; i-- {
		if EqualFold(f[i].Name, name) {
			return f[i].Value
		}
	}
	return nil
}

// Has reports whether there is a field of the name.
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

// Del removes all fields of the name.
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

// EqualFold compares ASCII, ignoring case.
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

// Version is the version of HTTP of a message.
type Version uint8

// The versions.
const (
	HTTP10 Version = iota
	HTTP11
	HTTP2
)

// String returns the version as in request lines and logs.
func (v Version) String() string {
	switch v {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	}
	return "HTTP/2.0"
}

// Unknown is the Length of a body whose length is not known in advance.
const Unknown = -1

// Request is a request's head.
type Request struct {
	Method []byte
	// Target is path and query as sent; "*" for OPTIONS.
	Target []byte
	// Host is the authority, as sent: a name in any case, optionally with a port. It is empty for an HTTP/1.0 request
	// without one.
	Host   []byte
	Fields Fields
	// Length is that of the body in bytes, 0 for none, or Unknown.
	Length int64
	// Upgrade lists the protocols to which the client offers to switch after the request's body, such as "websocket",
	// separated by commas; nil for none.
	Upgrade []byte
	// Continue means that the client waits for status 100 before it sends the body.
	Continue bool
	// Trailers means that the client accepts trailers (TE: trailers).
	Trailers bool
	Version  Version
	// TLS means that the client's connection is encrypted. Client is its address, Local the address that it connected
	// to.
	TLS           bool
	Client, Local netip.AddrPort
	// Session is the result of the handshake of the client's connection; nil if there was none.
	Session *Session
}

// Path is the target without its query.
func (r *Request) Path() []byte {
	for i, c := range r.Target {
		if c == '?' {
			return r.Target[:i]
		}
	}
	return r.Target
}

// Query is what follows the question mark of the target; nil if there is none.
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
	// Length is that of the body in bytes, 0 for none, or Unknown. For a response to HEAD and for 304 it is the length
	// that a GET would have, for the field Content-Length only.
	Length int64
	// Upgrade is the protocol that a 101 switches to.
	Upgrade []byte
}

// Bodyless reports whether the response has no body by its kind, whatever its fields say.
func (r *Response) Bodyless(method []byte) bool {
	return r.Status < 200 || r.Status == 204 || r.Status == 304 || string(method) == "HEAD"
}

// Downstream is one exchange from the client's side. Its methods are called by one goroutine at a time, except Read,
// which another one may call while a response is written.
type Downstream interface {
	// Request returns the head; its fields may be replaced.
	Request() *Request
	// Read reads the request's body; io.EOF at its end. The first Read sends status 100 to a client that waits for it.
	io.Reader
	// Buffered returns how many bytes of the body have arrived, 0 if unknown. Ready reports whether Read would return
	// without blocking.
	Buffered() int
	Ready() bool
	// Trailers returns those of the request, once its body has ended.
	Trailers() Fields
	// Respond sends the head. It completes a response without a body (Bodyless, Length 0).
	Respond(*Response) error
	// Write sends a part of the body; Flush sends what is buffered.
	io.Writer
	Flush() error
	// Finish ends the body, with trailers if there are any.
	Finish(trailers Fields) error
	// Responded reports whether a final head was sent.
	Responded() bool
	// Switch sends the head of a 101 and hands over the connection, with the bytes that were read after the request.
	// The request's body must have been read to its end. It is an error if the version has no status 101.
	Switch(*Response) (io.ReadWriteCloser, error)
	// Watch calls gone once when the client leaves, until stop is called. It is for long waits: it may cost a
	// goroutine. gone may be called from any goroutine. When stop has returned, gone is not running, and will not be
	// called.
	Watch(gone func()) (stop func())
	// StopReading makes a blocked Read return an error; the rest of the body is not needed.
	StopReading()
	// Abort ends the exchange so that the client notices that it is incomplete.
	Abort()
}

// Until wraps a call: once stop has returned, the call is not running, and will not be made, because its object may be
// reused.
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
