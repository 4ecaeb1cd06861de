package cli

import (
	"fmt"
	"io"
	"unicode/utf8"
)

// visible writes text for a terminal. Names, paths and annotations of other people's objects are in it: characters that
// a terminal would obey (ESC, CSI, backspace, the end of a line that has none) or that reorder a line are written as
// \u001b. JSON means the same with them.
type visible struct {
	to io.Writer
	// rest are the first bytes of a character whose other bytes have not been written yet.
	rest []byte
}

// visibly returns a visible for w.
func visibly(w io.Writer) *visible { return &visible{to: w} }

// Raw returns what a command's output is written to, for bytes that are not text.
func Raw(w io.Writer) io.Writer {
	if v, ok := w.(*visible); ok {
		return v.to
	}
	return w
}

// Write implements io.Writer.
func (v *visible) Write(p []byte) (int, error) {
	text := append(v.rest, p...)
	v.rest = nil
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		if !utf8.FullRune(text) {
			v.rest = text
			break
		}
		r, n := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && n == 1: // a terminal may take the byte for one of Latin-1
			out = fmt.Appendf(out, `\x%02x`, text[0])
		case obeyed(r):
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = append(out, text[:n]...)
		}
		text = text[n:]
	}
	if _, err := v.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// end writes what is left of an incomplete character.
func (v *visible) end() {
	for _, b := range v.rest {
		_, _ = fmt.Fprintf(v.to, `\x%02x`, b)
	}
	v.rest = nil
}

// obeyed reports whether a terminal acts on a character instead of showing it: controls of ASCII and Latin-1 except for
// tab and the end of a line, and those that change the direction of text (Unicode, annex 9).
func obeyed(r rune) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case r < ' ', 0x7f <= r && r < 0xa0:
		return true
	}
	return 0x202a <= r && r <= 0x202e || 0x2066 <= r && r <= 0x2069 || r == 0x200e || r == 0x200f || r == 0x2028 ||
		r == 0x2029
}
