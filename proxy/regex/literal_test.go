package regex

import (
	"strings"
	"testing"
)

func TestLiteralPrefix(t *testing.T) {
	for pattern, want := range map[string]string{
		"/a": "/a", "/a(/|$)(.*)": "/a", "/(.*)": "/", "/ab?c": "/a", "/ab*": "/a", "/ab{0}": "/a", "/ab+": "/ab",
		"/a.b": "/a", `/a\.b`: "/a",
		"/a|/b": "/", "/(a|b)": "/", "/x[|]y": "/x", `/x\|y`: "/x", "/a)|/b": "/", "/caf\u00e9": "/caf", "?": "/",
		"": "/", "(": "/", "/a[": "/a", "/\u212a": "/",
	} {
		if got := LiteralPrefix(pattern); got != want {
			t.Errorf("%q: %q, want %q", pattern, got, want)
		}
	}
}

// FuzzLiteralPrefix: each match of a pattern begins with its literal prefix.
func FuzzLiteralPrefix(f *testing.F) {
	for _, s := range []string{"/a(/|$)(.*)", "/ab?c", "/a|b", "/a[|]", "/a{2,3}b", `/a\Qb|c\E`, "/[]|]x",
		"/a(?i)b|c"} {
		f.Add(s, "/ab/c")
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		prog, err := CompilePath(pattern)
		isASCII := !strings.ContainsFunc(path, func(r rune) bool { return r >= 0x80 })
		if err != nil || !isASCII || !strings.HasPrefix(pattern, "/") || !strings.HasPrefix(path, "/") {
			return
		}
		prefix := strings.ToLower(LiteralPrefix(pattern))
		if prog.Regexp.MatchString(path) && !strings.HasPrefix(strings.ToLower(path), prefix) {
			t.Errorf("%q matches %q, which does not begin with %q", pattern, path, LiteralPrefix(pattern))
		}
	})
}

// An expression is compiled within the bounds of its length and of its instructions, and is an expression of its own
// behind its prefix.
func TestExpressionsAreBounded(t *testing.T) {
	for expression, ok := range map[string]bool{
		strings.Repeat("a", 500): true, strings.Repeat("a", MaxLength+1): false, "(a{1,50}){1,50}": false, "(": false,
		"a)|(b": false,
	} {
		if _, err := CompilePath(expression); (err == nil) != ok {
			t.Errorf("%.20q: %v", expression, err)
		}
	}
	prog, err := CompilePath("/a|/b")
	if err != nil || !prog.Regexp.MatchString("/B/c") || prog.Regexp.MatchString("/c/b") || prog.Steps == 0 {
		t.Errorf("%v, %v", prog, err)
	}
}
