package regex

import (
	"cmp"
	"strings"
)

// LiteralPrefix is the text that each match of a regular expression begins with, as far as it
// is known without reading the expression: it may not be RE2. "/" stands for nothing known.
func LiteralPrefix(pattern string) string {
	if alternates(pattern) {
		return "/"
	}
	end := strings.IndexAny(pattern, `()[]{}*+?|^$\.`)
	if end < 0 {
		end = len(pattern)
	} else if strings.IndexByte("*?{", pattern[end]) >= 0 && end > 0 {
		end-- // the character before may be missing
	}
	for i := range end {
		if pattern[i] >= 0x80 { // without regard to case it may be another character
			end = i
			break
		}
	}
	return cmp.Or(pattern[:end], "/")
}

// alternates says whether there may be a "|" outside of all groups: what is before the first
// one is no prefix then.
func alternates(pattern string) bool {
	depth, class := 0, false
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\':
			i++
		case class:
			class = c != ']'
		case c == '[':
			class = true
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == '|' && depth <= 0:
			return true
		}
	}
	return false
}
