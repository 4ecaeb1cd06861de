package h1

import "bytes"

// scan decides when a block of lines that is still growing, a head or trailers, is parsed: once it
// is whole. An unfinished one is parsed, too, so that a fault is answered when it comes, as long as
// that costs no more than earlyWork and twice what is there. So the work for a block is linear in its
// bytes, however many reads they come by.
type scan struct {
	seen, work int
}

// earlyWork is how many bytes of an unfinished block may be parsed again.
const earlyWork = 16 << 10

// due says whether b, which begins with what it was told before, is to be parsed now.
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

// whole says whether an empty line ends in what is new of b.
func (s *scan) whole(b []byte) bool {
	if s.seen < len(crlf) && bytes.HasPrefix(b, crlf) {
		return true
	}
	from := b[max(s.seen-2, 0):]
	return bytes.Contains(from, []byte("\n\r\n")) || bytes.Contains(from, []byte("\n\n"))
}
