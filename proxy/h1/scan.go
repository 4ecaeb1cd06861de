package h1

import "bytes"

// scan decides when a growing block of lines (a head or trailers) is parsed: once it is complete. An incomplete block
// is parsed, too, so that a fault is answered early, as long as that costs at most earlyWork plus twice the bytes
// received. The work for a block is therefore linear in its bytes, whatever the number of reads.
type scan struct {
	seen, work int
}

// earlyWork is how many bytes of incomplete blocks may be parsed again.
const earlyWork = 16 << 10

// due reports whether b, which begins with what was passed before, is to be parsed now.
func (s *scan) due(rd *reader, b []byte) bool {
	if len(b) <= s.seen {
		return false
	}
	if s.seen > 0 {
		fresh := b[s.seen:]
		rd.examined += int64(len(fresh))
		if bytes.IndexByte(fresh, '\n') < 0 && bytes.IndexByte(fresh, '\r') < 0 {
			s.seen = len(b)
			return false
		}
		if !s.whole(b) && s.work+len(b) > earlyWork+2*len(b) {
			s.seen = len(b)
			return false
		}
	}
	s.seen = len(b)
	s.work += len(b)
	rd.examined += int64(len(b))
	return true
}

// whole reports whether an empty line ends within the new part of b.
func (s *scan) whole(b []byte) bool {
	if s.seen < len(crlf) && bytes.HasPrefix(b, crlf) {
		return true
	}
	from := b[max(s.seen-2, 0):]
	return bytes.Contains(from, []byte("\n\r\n")) || bytes.Contains(from, []byte("\n\n"))
}
