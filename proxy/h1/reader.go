package h1

import (
	"bytes"
	"errors"
	"io"
	"net"
	"time"

	"wayleave.dev/proxy/message"
)

// Sizes of buffers. A head that is longer than what is first read for it gets more, up
// to the limit of its reader.
const (
	firstRead = 4 << 10
	// room is what must be free behind a head, for lines of chunks and trailers.
	room = 2 << 10
	// maxLine bounds the line of a chunk, maxTrailers what is behind the last one.
	maxLine     = 1 << 10
	maxTrailers = 8 << 10
)

// reader reads messages from a connection, one after the other. What it read of a head
// stays where it is until the next head: its slices are in use.
type reader struct {
	c   net.Conn
	buf []byte
	// What is read and not yet used is buf[r:w]; below floor is the head in use.
	r, w, floor int
	limit       int // of a head, in bytes
}

// buffered is what has been read and not yet used.
func (rd *reader) buffered() []byte { return rd.buf[rd.r:rd.w] }

// fill reads once more. It makes room by moving what is not used yet, never the head.
func (rd *reader) fill(max int) error {
	if rd.w == len(rd.buf) {
		if err := rd.grow(max); err != nil {
			return err
		}
	}
	n, err := rd.c.Read(rd.buf[rd.w:])
	rd.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// errFull says that max bytes are there and more would be needed.
var errFull = errors.New("too long")

func (rd *reader) grow(max int) error {
	have := rd.w - rd.r
	if have >= max {
		return errFull
	}
	if rd.r > rd.floor {
		copy(rd.buf[rd.floor:], rd.buf[rd.r:rd.w])
		rd.r, rd.w = rd.floor, rd.floor+have
		if rd.w < len(rd.buf) {
			return nil
		}
	}
	size := firstRead
	for size <= have || size < 2*have && size < max {
		size *= 2
	}
	next := make([]byte, size) // the old one lives on with the head in it
	copy(next, rd.buf[rd.r:rd.w])
	rd.buf, rd.r, rd.w, rd.floor = next, 0, have, 0
	return nil
}

// begin makes the reader ready for the next head.
func (rd *reader) begin() {
	rd.floor = 0
	if rd.r == rd.w {
		rd.r, rd.w = 0, 0
		if len(rd.buf) > 4*firstRead { // a large head was an exception
			rd.buf = nil
		}
	}
}

// head reads until parse has a whole head. parse gets what is there, and says how many
// bytes the head took, or errMore.
func (rd *reader) head(parse func([]byte) (int, error)) error {
	seen := 0
	for {
		// A byte at a time must not have everything parsed anew each time.
		if b := rd.buffered(); len(b) > seen && (bytes.IndexByte(b[seen:], '\n') >= 0 || bytes.IndexByte(b[seen:], '\r') >= 0) {
			n, err := parse(b)
			if err == nil {
				rd.r += n
				rd.floor = rd.r
				if len(rd.buf)-rd.floor < room {
					rest := rd.buffered()
					rd.buf = append(make([]byte, 0, firstRead+len(rest)), rest...)
					rd.buf, rd.r, rd.w, rd.floor = rd.buf[:cap(rd.buf)], 0, len(rest), 0
				}
				return nil
			}
			if err != errMore {
				return err
			}
			if seen = len(b); seen > rd.limit {
				return &Error{Status: 431, Reason: "the head is too long"}
			}
		}
		if err := rd.fill(rd.limit); err != nil {
			if err == errFull {
				return &Error{Status: 431, Reason: "the head is too long"}
			}
			return err
		}
	}
}

// body reads one message's body.
type body struct {
	rd *reader
	// left is what is still to come, of the body or of the present chunk; Unknown when
	// the body ends with the connection.
	left    int64
	chunked bool
	// between says that a chunk has been read, and the end of its line has not.
	between  bool
	done     bool
	err      error
	trailers message.Fields
	fr       framing
}

func (b *body) reset(rd *reader, length int64, chunked bool) {
	*b = body{rd: rd, left: length, chunked: chunked, trailers: b.trailers[:0]}
	if chunked {
		b.left = 0
	}
	b.done = !chunked && length == 0
}

// Buffered is how many bytes of the body Read would give without waiting, at least.
func (b *body) Buffered() int {
	n := len(b.rd.buffered())
	if b.left >= 0 && int64(n) > b.left {
		n = int(b.left)
	}
	return n
}

// Read gives the next bytes of the body; io.EOF at its end. A body that breaks off is
// io.ErrUnexpectedEOF.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.done {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	if b.chunked && b.left == 0 {
		if err := b.next(); err != nil {
			return 0, unexpected(err)
		}
		if b.done {
			return 0, io.EOF
		}
	}
	if b.left >= 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := 0, error(nil)
	if have := b.rd.buffered(); len(have) > 0 {
		n = copy(p, have)
		b.rd.r += n
	} else if n, err = b.rd.c.Read(p); n == 0 {
		if b.left < 0 && err == io.EOF {
			b.done = true
			return 0, io.EOF
		}
		return 0, unexpected(err)
	}
	if b.left > 0 {
		if b.left -= int64(n); b.left == 0 {
			b.between = b.chunked
			b.done = !b.chunked
		}
	}
	return n, nil
}

func unexpected(err error) error {
	if err == io.EOF || err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next reads the line of the next chunk, and the trailers behind the last one.
func (b *body) next() error {
	if b.between {
		line, err := b.line(2)
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return bad("a chunk that is longer than its size")
		}
		b.between = false
	}
	line, err := b.line(maxLine)
	if err != nil {
		return err
	}
	if b.left, err = chunkSize(line); err != nil || b.left > 0 {
		return err
	}
	return b.end()
}

// line reads one line of at most max bytes.
func (b *body) line(max int) ([]byte, error) {
	for {
		h := head{buf: b.rd.buffered()}
		line, err := h.line()
		if err == nil && len(line) <= max {
			b.rd.r += h.off
			return line, nil
		}
		if err == nil || err == errMore && len(h.buf) > max {
			return nil, bad("a chunk's line that is too long")
		}
		if err != errMore {
			return nil, err
		}
		if err := b.rd.fill(max + room); err != nil {
			return nil, err
		}
	}
}

// chunkSize reads hexadecimal digits; what is behind a semicolon means nothing to us.
func chunkSize(line []byte) (int64, error) {
	if i := bytes.IndexByte(line, ';'); i >= 0 {
		if !all(line[i:], &value) {
			return 0, bad("a chunk's extension with a control character")
		}
		line = trim(line[:i])
	}
	if len(line) == 0 || len(line) > 15 {
		return 0, bad("a chunk's size that is not a number")
	}
	n := int64(0)
	for _, c := range line {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, bad("a chunk's size that is not a number")
		}
		n = n<<4 | int64(c)
	}
	return n, nil
}

// end reads the trailers. Fields of the connection and of framing mean nothing there.
func (b *body) end() error {
	for {
		h := head{buf: b.rd.buffered()}
		list := b.trailers[:0]
		err := h.fields(&list, &b.fr, true)
		if err == nil {
			// They must outlive the buffer, which the next message has.
			b.trailers = clone(list)
			b.rd.r += h.off
			b.done, b.left = true, 0
			return nil
		}
		if err != errMore {
			return err
		}
		if err := b.rd.fill(maxTrailers); err != nil {
			if err == errFull {
				return &Error{Status: 431, Reason: "trailers that are too long"}
			}
			return err
		}
	}
}

func clone(list message.Fields) message.Fields {
	var out message.Fields
	for _, f := range list {
		out = append(out, message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)})
	}
	return out
}

// discard reads what is left of the body, up to max bytes; ok says that its end was seen.
func (b *body) discard(max int) (ok bool) {
	var scratch [2 << 10]byte
	for !b.done && b.err == nil && max > 0 {
		n, err := b.Read(scratch[:])
		max -= n
		if err != nil {
			break
		}
	}
	return b.done
}

// deadline sets the connection's time for reading, when d is not 0.
func (rd *reader) deadline(d time.Duration) error {
	if d == 0 {
		return rd.c.SetReadDeadline(time.Time{})
	}
	return rd.c.SetReadDeadline(time.Now().Add(d))
}
