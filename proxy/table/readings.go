package table

import (
	"strings"
	"unicode/utf8"
)

// readings are the paths as which servers may interpret the path, including the path itself: they apply each step that
// some server is known to apply, in any order and number. ok is false if there are too many.
//
//	decode     percent-decoding, once (nginx, Go, WSGI) or twice (a proxy and a server)
//	unicode    %uXXXX, overlong UTF-8 and full-width letters (IIS, older Java)
//	parameters ;… of each segment is cut off (Servlets)
//	backslash  is a slash (IIS, .NET)
//	cut        at a zero byte, "?" or "#" once decoded (C programs, URL parsers)
//	merge      of slashes (nginx, Go, Servlets)
//	dots       "." and ".." are resolved (all), with empty segments as segments or not
//	trim       of white space, control characters and final dots of segments (Windows, Node)
func readings(path string) (all []string, ok bool) {
	steps := []func(string) string{decoded, fromUnicode, withoutParameters, withSlashes, cutOff, merged,
		undotted, trimmed}
	all, seen, size := []string{path}, map[string]bool{path: true}, len(path)
	for i := 0; i < len(all); i++ {
		for _, step := range steps {
			r := step(all[i])
			if seen[r] {
				continue
			}
			if size += len(r); len(all) >= maxReadings || size > maxReadingBytes {
				return nil, false
			}
			seen[r] = true
			all = append(all, r)
		}
	}
	return all, true
}

// disputed reports whether a path contains a construct whose only use is to mislead: a backslash, a dot segment at an
// encoded slash, or overlong UTF-8.
func disputed(path string) bool {
	once := decoded(path)
	for i := range len(once) {
		switch once[i] {
		case '\\', 0, 0xc0, 0xc1:
			return true
		}
	}
	for seg := range strings.SplitSeq(path, "/") {
		parts := strings.Split(strings.ReplaceAll(seg, "%2F", "%2f"), "%2f")
		if len(parts) == 1 {
			continue
		}
		for _, p := range parts {
			if p, _, _ = strings.Cut(decoded(p), ";"); p == "." || p == ".." {
				return true
			}
		}
	}
	return false
}

// decoded returns the path with its escapes decoded; invalid escapes stay.
func decoded(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == '%' && i+2 < len(s) && hex(s[i+1]) >= 0 && hex(s[i+2]) >= 0 {
			b = append(b, byte(hex(s[i+1])<<4|hex(s[i+2])))
			i += 2
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// fromUnicode converts to ASCII what some servers take for ASCII.
func fromUnicode(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		c := s[i]
		if c == '%' && i+5 < len(s) && s[i+1]|0x20 == 'u' {
			if r := hex4(s[i+2 : i+6]); r >= 0 {
				b = utf8.AppendRune(b, narrow(rune(r)))
				i += 6
				continue
			}
		}
		if c < utf8.RuneSelf {
			b = append(b, c)
			i++
			continue
		}
		if c == 0xc0 || c == 0xc1 { // overlong, in two bytes
			if i+1 < len(s) {
				b = append(b, (c&3)<<6|s[i+1]&0x3f)
				i += 2
				continue
			}
		}
		if c == 0xe0 && i+2 < len(s) && s[i+1] < 0xa0 { // overlong, in three
			if r := rune(s[i+1]&0x3f)<<6 | rune(s[i+2]&0x3f); r < utf8.RuneSelf {
				b = append(b, byte(r))
				i += 3
				continue
			}
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError {
			b = append(b, s[i:i+n]...)
		} else {
			b = utf8.AppendRune(b, narrow(r))
		}
		i += n
	}
	return string(b)
}

func hex4(s string) int {
	n := 0
	for i := range 4 {
		h := hex(s[i])
		if h < 0 {
			return -1
		}
		n = n<<4 | h
	}
	return n
}

// narrow returns the ASCII letter for a full-width one, or for one that becomes ASCII in another case.
func narrow(r rune) rune {
	switch {
	case 0xff01 <= r && r <= 0xff5e:
		return r - 0xfee0
	case r == 0x212a: // Kelvin
		return 'k'
	case r == 0x17f: // long s
		return 's'
	case r == 0x131, r == 0x130: // i without a dot, I with one
		return 'i'
	case r == 0x2215, r == 0x2044: // division and fraction slash
		return '/'
	case r == 0x2216:
		return '\\'
	}
	return r
}

// withoutParameters truncates segments at their semicolons.
func withoutParameters(s string) string {
	if strings.IndexByte(s, ';') < 0 {
		return s
	}
	parts := strings.Split(s, "/")
	for i, p := range parts {
		parts[i], _, _ = strings.Cut(p, ";")
	}
	return strings.Join(parts, "/")
}

func withSlashes(s string) string { return strings.ReplaceAll(s, `\`, "/") }

// cutOff ends the path where servers may end a decoded one.
func cutOff(s string) string {
	if i := strings.IndexAny(s, "\x00?#"); i >= 0 {
		return s[:i]
	}
	return s
}

// merged replaces several slashes by one.
func merged(s string) string {
	for strings.Contains(s, "//") {
		s = strings.ReplaceAll(s, "//", "/")
	}
	return s
}

// undotted resolves dot segments (RFC 3986, 5.2.4), also if a dot is written as an escape. Above the root is the root.
func undotted(s string) string {
	if !strings.Contains(s, "/.") && !strings.Contains(s, "/%2") {
		return s
	}
	var out []string
	parts := strings.Split(strings.TrimPrefix(s, "/"), "/")
	for i, p := range parts {
		dots := strings.ReplaceAll(strings.ReplaceAll(p, "%2e", "."), "%2E", ".")
		switch {
		case dots == "..":
			out = out[:max(len(out)-1, 0)]
		case dots == ".":
		default:
			out = append(out, p)
			continue
		}
		if i == len(parts)-1 {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

// trimmed removes invisible characters at the ends of segments, tabs and line ends everywhere, and dots at the end of
// names.
func trimmed(s string) string {
	parts := strings.Split(strings.NewReplacer("\t", "", "\r", "", "\n", "").Replace(s), "/")
	for i, p := range parts {
		if p == "." || p == ".." {
			continue
		}
		begin, end := 0, len(p)
		for begin < end && invisible(p[begin]) {
			begin++
		}
		for end > begin && (invisible(p[end-1]) || p[end-1] == '.') {
			end--
		}
		parts[i] = p[begin:end]
	}
	return strings.Join(parts, "/")
}

// invisible are control characters and spaces of ASCII and Latin-1, and the byte before the
// latter in UTF-8.
func invisible(c byte) bool { return c <= ' ' || 0x7f <= c && c <= 0xa0 || c == 0xc2 }

// fold returns the path for case-insensitive servers.
func fold(s string) string { return strings.ToLower(s) }
