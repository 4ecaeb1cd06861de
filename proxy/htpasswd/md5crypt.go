package htpasswd

import (
	hash "crypto/md5"
	"strings"
)

// The prefixes of MD5-crypt: Apache's, and that of Unix. The schemes are equal otherwise.
const (
	apr1 = "$apr1$"
	md5  = "$1$"
)

// splitMD5 splits "$apr1$salt$sum". The salt has at most eight characters.
func splitMD5(s string) (magic, salt, sum string) {
	magic = apr1
	if strings.HasPrefix(s, md5) {
		magic = md5
	}
	salt, sum, _ = strings.Cut(s[len(magic):], "$")
	return magic, salt[:min(len(salt), 8)], sum
}

// md5Crypt is Poul-Henning Kamp's algorithm: one MD5 of password and salt mixed by the password's length, and a
// thousand more to be slow.
func md5Crypt(magic, salt string, password []byte) string {
	inner := hash.New()
	_, _ = inner.Write(password)
	_, _ = inner.Write([]byte(salt))
	_, _ = inner.Write(password)
	alternate := inner.Sum(nil)

	h := hash.New()
	_, _ = h.Write(password)
	_, _ = h.Write([]byte(magic + salt))
	for n := len(password); n > 0; n -= hash.Size {
		_, _ = h.Write(alternate[:min(n, hash.Size)])
	}
	for n := len(password); n > 0; n >>= 1 {
		if n&1 == 1 {
			_, _ = h.Write([]byte{0})
		} else {
			_, _ = h.Write(password[:1])
		}
	}
	sum := h.Sum(nil)
	for i := range 1000 {
		h.Reset()
		first, last := sum, password
		if i&1 == 1 {
			first, last = password, sum
		}
		_, _ = h.Write(first)
		if i%3 != 0 {
			_, _ = h.Write([]byte(salt))
		}
		if i%7 != 0 {
			_, _ = h.Write(password)
		}
		_, _ = h.Write(last)
		sum = h.Sum(sum[:0:0])
	}
	var out []byte
	for _, t := range [][3]int{{0, 6, 12}, {1, 7, 13}, {2, 8, 14}, {3, 9, 15}, {4, 10, 5}} {
		out = to64(out, uint(sum[t[0]])<<16|uint(sum[t[1]])<<8|uint(sum[t[2]]), 4)
	}
	return string(to64(out, uint(sum[11]), 2))
}

// to64 appends n characters of six bits each, the lowest bits first.
func to64(out []byte, v uint, n int) []byte {
	const digits = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for range n {
		out = append(out, digits[v&63])
		v >>= 6
	}
	return out
}
