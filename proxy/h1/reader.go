package h1

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"wayleave.dev/proxy/message"
)

// Sizes of buffers. A head that does not fit into the first buffer gets a larger one, up to the reader's limit.
const (
	firstRead = 4 << 10
	// room is the free space that must follow a head, for chunk lines and trailers.
	room = 1 << 10
	// maxLine bounds a chunk line, maxTrailers the trailers.
	maxLine     = 1 << 10
	maxTrailers = 8 << 10
)

// block is the buffer for most messages.
type block [firstRead]byte

// blocks are the free ones.
type blocks struct{ pool sync.Pool }

func newBlocks() *blocks { return &blocks{sync.Pool{New: func() any { return new(block) }}} }

// reader reads messages from a connection, one after the other. The bytes of a head stay in place until the next head,
// because slices refer to them.
type reader struct {
	c    net.Conn
	from *blocks
	// until is the deadline that is set, if known.
	until time.Time
	// block is the block that buf refers to; nil if buf is larger or there is none.
	block *block
	buf   []byte
	// Bytes that were read and not used yet are buf[r:w]; those below floor belong to the current head.
	r, w, floor int
	limit       int           // of a head, in bytes
	headTime    time.Duration // from the first byte of a head to its last; 0 for no bound
	// below is the connection below TLS; nil if there is none.
	below *Direct
	// incomplete is called before more of a head is read; may be nil.
	incomplete func()
	// examined counts the bytes that were searched or parsed. It grows linearly with the received bytes, whatever the
	// sizes of the reads.
	examined int64
}

// buffered returns what has been read and not used yet.
func (rd *reader) buffered() []byte { return rd.buf[rd.r:rd.w] }

// fill makes one read. It makes room by moving unused bytes, never the head. max bounds the unused bytes.
func (rd *reader) fill(max int) error {
	if rd.r == rd.w {
		rd.r, rd.w = rd.floor, rd.floor
	}
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

// errFull means that max bytes are buffered and more would be needed.
var errFull = errors.New("too long")

func (rd *reader) grow(max int) error {
	if rd.buf == nil {
		rd.block = rd.from.pool.Get().(*block)
		rd.buf, rd.r, rd.w, rd.floor = rd.block[:], 0, 0, 0
		return nil
	}
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
	size := 2 * firstRead
	for size <= have || size < 2*have && size < max {
		size *= 2
	}
	rd.move(size)
	return nil
}

// move continues in a larger buffer. The previous one stays in use by the head in it, so it is not returned to the
// pool.
func (rd *reader) move(size int) {
	next := make([]byte, size)
	have := copy(next, rd.buf[rd.r:rd.w])
	rd.block, rd.buf, rd.r, rd.w, rd.floor = nil, next, 0, have, 0
}

// begin prepares the reader for the next head. The previous head becomes invalid.
func (rd *reader) begin() {
	rd.floor = 0
	if rd.r == rd.w {
		rd.r, rd.w = 0, 0
		if rd.block == nil {
			rd.buf = nil // a large head was an exception
		}
	}
}

// release returns the buffer to the pool: a waiting connection has none. Its content is lost.
func (rd *reader) release() {
	if rd.block != nil {
		rd.from.pool.Put(rd.block)
	}
	rd.block, rd.buf, rd.r, rd.w, rd.floor = nil, nil, 0, 0, 0
}

// head reads until parse has a complete head. parse gets the bytes so far, and returns the length of the head, or
// errMore.
func (rd *reader) head(parse func([]byte) (int, error)) error {
	var s scan
	timed := false
	for {
		if b := rd.buffered(); s.due(rd, b) {
			n, err := parse(b)
			if err == nil {
				return rd.took(n)
			}
			if err != errMore {
				return err
			}
		}
		if rd.w-rd.r > rd.limit {
			return rd.tooLong()
		}
		if rd.headTime > 0 && !timed {
			timed = true
			if err := rd.deadline(rd.headTime); err != nil {
				return err
			}
		}
		if rd.incomplete != nil {
			rd.incomplete()
		}
		if err := rd.fill(rd.limit); err != nil {
			if err == errFull {
				return rd.tooLong()
			}
			return err
		}
	}
}

// took is called after a head of n bytes.
func (rd *reader) took(n int) error {
	if n > rd.limit {
		return rd.tooLong()
	}
	rd.r += n
	rd.floor = rd.r
	if len(rd.buf)-rd.floor < room {
		rd.move(firstRead + rd.w - rd.r)
	}
	return nil
}

func (rd *reader) tooLong() error {
	if bytes.IndexByte(rd.buffered(), '\n') < 0 {
		return &Error{Status: 414, Reason: "the request line is too long"}
	}
	return &Error{Status: 431, Reason: "the head is too long"}
}

// body reads one message's body.
type body struct {
	rd *reader
	// left is the rest of the body or of the current chunk; Unknown if the body ends with the connection.
	left    int64
	chunked bool
	// between means that a chunk has been read, but not the end of its line; trailing means that the last chunk's line
	// has been read, but not the trailers.
	between, trailing bool
	done              bool
	err               error
	trailers          message.Fields
	// named are the fields that the head's Connection names: they are not trailers either (RFC 9110, 7.6.1).
	named [][]byte
	// mostBytes bounds the trailers, 0 for maxTrailers; most bounds their number, 0 for maxFields.
	mostBytes, most int
	// response means that the body is an endpoint's: some endpoints pad the sizes of chunks with spaces.
	response bool
}

func (b *body) reset(rd *reader, length int64, fr *framing) {
	chunked := fr.chunked
	b.rd, b.left, b.chunked, b.named, b.most = rd, length, chunked, fr.named, fr.most
	b.between, b.trailing, b.err, b.trailers = false, false, nil, nil
	if chunked {
		b.left = 0
	}
	b.done = !chunked && length == 0
}

// ready reports whether Read would return bytes, or the end, without blocking.
func (b *body) ready() bool {
	if b.done || b.err != nil {
		return true
	}
	have := b.rd.buffered()
	if !b.chunked || b.left > 0 {
		return len(have) > 0
	}
	if b.trailing {
		return bytes.HasPrefix(have, crlf) || bytes.HasSuffix(have, blockEnd)
	}
	// The line of the next chunk must have arrived with a byte of the chunk; that of the last one with the end.
	if b.between {
		if len(have) < 2 {
			return false
		}
		have = have[2:]
	}
	if len(have) > 0 && have[0] == '0' {
		return bytes.HasSuffix(have, blockEnd)
	}
	i := bytes.IndexByte(have[:min(len(have), maxLine+2)], '\n')
	return i >= 0 && i+1 < len(have)
}

var crlf, blockEnd = []byte("\r\n"), []byte("\r\n\r\n")

// Read reads the next bytes of the body; io.EOF at its end. A truncated body gives io.ErrUnexpectedEOF.
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
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
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
	// A short chunk is read together with what follows it.
	if b.chunked && len(b.rd.buffered()) == 0 && len(p) < firstRead/2 {
		if err := b.rd.fill(firstRead); err != nil {
			return 0, unexpected(err)
		}
	}
	n, err := 0, error(nil)
	if have := b.rd.buffered(); len(have) > 0 {
		n = copy(p, have)
		b.rd.r += n
	} else if n, err = b.rd.c.Read(p); n == 0 {
		if b.left < 0 && err == io.EOF && !b.rd.cut() {
			b.done = true
			return 0, io.EOF
		}
		return 0, unexpected(err)
	}
	b.took(n)
	return n, nil
}

// cut reports whether TLS ended without close_notify: a body that ends with the connection is then incomplete (RFC
// 9112, 9.8).
func (rd *reader) cut() bool { return rd.below != nil && rd.below.ended }

// took is called after n bytes of content.
func (b *body) took(n int) {
	if b.left > 0 {
		if b.left -= int64(n); b.left == 0 {
			b.between = b.chunked
			b.done = !b.chunked
		}
	}
}

func unexpected(err error) error {
	if err == io.EOF || err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next reads the line of the next chunk, and the trailers after the last one.
func (b *body) next() error {
	if b.trailing {
		return b.end()
	}
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
	if b.response {
		line = bytes.TrimRight(line, " \t")
	}
	if b.left, err = chunkSize(line); err != nil || b.left > 0 {
		return err
	}
	b.trailing = true
	return b.end()
}

// line reads one line of at most max bytes.
func (b *body) line(max int) ([]byte, error) {
	for seen := 0; ; {
		h := head{buf: b.rd.buffered()}
		line, err := []byte(nil), errMore
		if seen == 0 || h.buf[seen-1] == '\r' || bytes.ContainsAny(h.buf[seen:], "\r\n") {
			if line, err = h.line(); err == nil {
				b.rd.examined += int64(h.off)
			} else {
				b.rd.examined += int64(len(h.buf))
			}
		}
		if err != nil {
			b.rd.examined += int64(len(h.buf) - seen)
		}
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
		seen = len(h.buf)
		if err := b.rd.fill(max + room); err != nil {
			return nil, err
		}
	}
}

// chunkSize parses hexadecimal digits; text after a semicolon is ignored.
func chunkSize(line []byte) (int64, error) {
	if i := bytes.IndexByte(line, ';'); i >= 0 {
		if !all(line[i:], &value) {
			return 0, bad("a chunk's extension with a control character")
		}
		line = line[:i]
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

// end reads the trailers. Fields of the connection and of framing are ignored there. Nothing of an incomplete block is
// kept from one read to the next.
func (b *body) end() error {
	var s scan
	limit := cmp.Or(b.mostBytes, maxTrailers)
	for {
		have := b.rd.buffered()
		if s.due(b.rd, have) {
			n, list, err := parseTrailers(have[:min(len(have), limit)], b.most)
			if err == nil {
				for _, name := range b.named {
					list.Del(string(name))
				}
				b.trailers = clone(list) // they must outlive the buffer, which the next message reuses
				b.rd.r += n
				b.done, b.left = true, 0
				return nil
			}
			if err != errMore {
				return err
			}
		}
		if len(have) >= limit {
			return &Error{Status: 431, Reason: "trailers that are too long"}
		}
		if err := b.rd.fill(limit); err != nil {
			return err
		}
	}
}

// parseTrailers parses the block of trailers at the start of buf.
func parseTrailers(buf []byte, most int) (n int, list message.Fields, err error) {
	h := head{buf: buf}
	fr := framing{most: most}
	err = h.fields(&list, &fr, true)
	return h.off, list, err
}

func clone(list message.Fields) message.Fields {
	var out message.Fields
	for _, f := range list {
		out = append(out, message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)})
	}
	return out
}

// discard reads the rest of the body, up to max bytes; ok reports whether its end was seen.
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

// deadline sets the connection's read deadline; 0 for none.
func (rd *reader) deadline(d time.Duration) error {
	rd.until = time.Time{}
	if d != 0 {
		rd.until = time.Now().Add(d)
	}
	return rd.c.SetReadDeadline(rd.until)
}

// about is deadline, but keeps an existing one that ends at most a quarter later: setting one costs as much as parsing
// a head.
func (rd *reader) about(d time.Duration) error {
	if left := time.Until(rd.until); d != 0 && left >= d && left <= d+d/4 {
		return nil
	}
	return rd.deadline(d + d/4)
}
