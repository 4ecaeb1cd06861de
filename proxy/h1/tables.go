package h1

// token are the characters of methods and field names (RFC 9110, 5.6.2).
var token = charset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

// hostChars are those of an authority without userinfo (RFC 3986, 3.2.2), but for the comma: it joins two fields into a
// list (RFC 9110, 5.3), whose first or last host another program might take.
var hostChars = charset("!$&'()*+;=-._~%[]:0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

// value are the characters of field values: visible ones, space, tab, and bytes above ASCII. target are those of a
// request's target: the same without white space, and without "#", which begins a part that is not sent to servers.
var value, target = visible(" \t", ""), visible("", "#")

func charset(s string) (t [256]bool) {
	for i := range len(s) {
		t[s[i]] = true
	}
	return t
}

func visible(more, but string) (t [256]bool) {
	for c := 0x21; c < 0x100; c++ {
		t[c] = c != 0x7f
	}
	for i := range len(more) {
		t[more[i]] = true
	}
	for i := range len(but) {
		t[but[i]] = false
	}
	return t
}

// all reports whether b contains only bytes of the set.
func all(b []byte, set *[256]bool) bool {
	for _, c := range b {
		if !set[c] {
			return false
		}
	}
	return true
}
