package regex

import (
	"cmp"
	"strings"
)

// LiteralPrefix returns the text with which each match of a regular expression begins, as far as it is known without
// compiling the expression, which may not be RE2. "/" means that nothing is known.
func LiteralPrefix(pattern string) string {
	if alternates(pattern) {
		return "/"
	}
	end := strings.IndexAny(pattern, `()[]{}*+?|^$\.`)
	if end < 0 {
		end = len(pattern)
	} else if strings.IndexByte("*?{", pattern[end]) >= 0 && end > 0 {
		end-- // the previous character is optional
	}
	for i := range end {
		if pattern[i] >= 0x80 { // case-insensitively it may match another character
			end = i
			break
		}
	}
	return cmp.Or(pattern[:end], "/")
}

// alternates reports whether there may be a "|" outside of all groups: the text before the first one is not a prefix
// then.
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
