package h1

import (
	"net"
	"strconv"
	"sync"
	"syscall"

	"wayleave.dev/proxy/message"
)

// writeBuffer is how much is buffered before it is written.
const writeBuffer = 16 << 10

// init finds the socket if the connection is a plain one.
func (w *writer) init() {
	if t, ok := w.c.(*net.TCPConn); ok {
		w.raw, _ = t.SyscallConn()
		w.step = w.push
		return
	}
	w.below = DirectOf(w.c)
}

// buffers are those of writers with bytes to write: idle connections have none.
type buffers struct{ pool sync.Pool }

func newBuffers() *buffers {
	return &buffers{sync.Pool{New: func() any { b := make([]byte, 0, writeBuffer); return &b }}}
}

// writer buffers a message and sends it in few writes.
type writer struct {
	c    net.Conn
	from *buffers
	buf  *[]byte // nil while nothing is buffered
	// chunked bodies get a line before each part.
	chunked bool
	sent    bool // bytes were written since reset
	err     error
	// raw and step write the rest of out and next to a socket (push); raw is nil if there is no socket.
	raw  syscall.RawConn
	step func(fd uintptr) bool
	out  []byte
	next []byte // sent after out
	// state is told when the socket accepts no more bytes, and when it does again; may be nil.
	state *State
	full  bool
	// below is the connection below TLS; nil if there is none.
	below *Direct
}

func (w *writer) reset() { w.chunked, w.sent, w.err = false, false, nil }

func (w *writer) bytes(b ...[]byte) {
	if w.buf == nil {
		w.buf = w.from.pool.Get().(*[]byte)
	}
	for _, x := range b {
		*w.buf = append(*w.buf, x...)
	}
}

func (w *writer) string(s string) {
	if w.buf == nil {
		w.buf = w.from.pool.Get().(*[]byte)
	}
	*w.buf = append(*w.buf, s...)
}

func (w *writer) number(n int64, base int) {
	if w.buf == nil {
		w.buf = w.from.pool.Get().(*[]byte)
	}
	*w.buf = strconv.AppendInt(*w.buf, n, base)
}

func (w *writer) fields(list message.Fields) {
	for i := range list {
		w.bytes(list[i].Name)
		w.string(": ")
		w.bytes(list[i].Value)
		w.string("\r\n")
	}
}

// frame writes the field that declares how the body ends, if one is needed.
func (w *writer) frame(length int64) {
	if length >= 0 {
		w.string("Content-Length: ")
		w.number(length, 10)
		w.string("\r\n")
	} else if w.chunked {
		w.string("Transfer-Encoding: chunked\r\n")
	}
}

// body adds a part of the body, and sends what does not fit.
func (w *writer) body(p []byte) error {
	if w.err != nil || len(p) == 0 {
		return w.err
	}
	if w.chunked {
		w.number(int64(len(p)), 16)
		w.string("\r\n")
	}
	if w.buf != nil && len(*w.buf)+len(p) > writeBuffer {
		if len(p) >= writeBuffer/2 { // large parts are not copied
			w.send(p)
			if w.chunked {
				w.string("\r\n")
			}
			return w.err
		}
		w.flush()
	}
	w.bytes(p)
	if w.chunked {
		w.string("\r\n")
	}
	return w.err
}

// end writes the last chunk and the trailers.
func (w *writer) end(trailers message.Fields) {
	if w.chunked {
		w.string("0\r\n")
		w.fields(trailers)
		w.string("\r\n")
	}
}

// send writes the buffer followed by p, in one call.
func (w *writer) send(p []byte) {
	if w.err != nil {
		return
	}
	if w.buf == nil || len(*w.buf) == 0 {
		w.write(p)
		return
	}
	if w.below != nil {
		w.below.Cork()
		w.writeTLS(*w.buf)
		w.writeTLS(p)
		w.uncork()
		*w.buf = (*w.buf)[:0]
		return
	}
	if w.raw != nil {
		w.next = p
		w.write(*w.buf)
	} else {
		w.write(*w.buf)
		w.write(p)
	}
	*w.buf = (*w.buf)[:0]
}

// writeTLS splits p into records.
func (w *writer) writeTLS(p []byte) {
	if w.err != nil {
		return
	}
	n, err := w.c.Write(p)
	w.sent, w.err = w.sent || n > 0, err
}

// writeAbove writes to a connection whose socket is unknown: until it returns, the client counts as the cause of the
// wait.
func (w *writer) writeAbove(p []byte) {
	if w.state == nil {
		w.writeTLS(p)
		return
	}
	w.state.Owes(0)
	w.writeTLS(p)
	w.state.To(Busy)
}

// uncork sends the records.
func (w *writer) uncork() {
	if err := w.below.Uncork(); err != nil && w.err == nil {
		w.err = err
	}
}

func (w *writer) write(p []byte) {
	if w.raw != nil {
		w.out = p
		if err := w.raw.Write(w.step); err != nil {
			w.err = err
		}
		w.out, w.next = nil, nil
		return
	}
	if w.below == nil {
		w.writeAbove(p)
		return
	}
	if len(p) <= oneRecord {
		w.writeTLS(p)
		return
	}
	w.below.Cork()
	w.writeTLS(p)
	w.uncork()
}

// oneRecord is the largest payload of a TLS record.
const oneRecord = 16 << 10

// flush sends what is buffered.
func (w *writer) flush() error {
	if w.buf == nil {
		return w.err
	}
	if w.err == nil && len(*w.buf) > 0 {
		w.write(*w.buf)
	}
	*w.buf = (*w.buf)[:0]
	return w.err
}

// release returns the buffer; unsent bytes are lost.
func (w *writer) release() {
	if w.buf == nil {
		return
	}
	if cap(*w.buf) <= 4*writeBuffer {
		*w.buf = (*w.buf)[:0]
		w.from.pool.Put(w.buf)
	}
	w.buf = nil
}
