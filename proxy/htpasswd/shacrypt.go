package htpasswd

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// shaCrypt is a hash of Ulrich Drepper's SHA-crypt, "$6$rounds=5000$salt$sum".
type shaCrypt struct {
	new    func() hash.Hash
	order  [][3]int
	rounds int
	salt   string
	sum    string
}

func splitSHA(s string) (shaCrypt, error) {
	c := shaCrypt{new: sha256.New, order: order256(), rounds: 5000}
	length := 43
	if strings.HasPrefix(s, "$6$") {
		c.new, c.order, length = sha512.New, order512(), 86
	}
	rest := s[3:]
	if text, ok := strings.CutPrefix(rest, "rounds="); ok {
		number, after, _ := strings.Cut(text, "$")
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n < 1000 || n > MaxRounds {
			return c, fmt.Errorf("SHA-crypt of rounds=%q; 1000 to %d are allowed", number, MaxRounds)
		}
		c.rounds, rest = int(n), after
	}
	salt, sum, ok := strings.Cut(rest, "$")
	if !ok || len(sum) != length {
		return c, errors.New("not salt and sum, as SHA-crypt has")
	}
	c.salt, c.sum = salt[:min(len(salt), 16)], sum
	return c, nil
}

// crypt computes the sum of a password.
func (c *shaCrypt) crypt(password []byte) string {
	salt := []byte(c.salt)
	b := digest(c.new, password, salt, password)
	h := c.new()
	_, _ = h.Write(password)
	_, _ = h.Write(salt)
	_, _ = h.Write(stretch(b, len(password)))
	for n := len(password); n > 0; n >>= 1 {
		if n&1 == 1 {
			_, _ = h.Write(b)
		} else {
			_, _ = h.Write(password)
		}
	}
	a := h.Sum(nil)
	p := stretch(digest(c.new, bytes.Repeat(password, len(password))), len(password))
	s := stretch(digest(c.new, bytes.Repeat(salt, 16+int(a[0]))), len(salt))
	for i := range c.rounds {
		h.Reset()
		first, last := a, p
		if i&1 == 1 {
			first, last = p, a
		}
		_, _ = h.Write(first)
		if i%3 != 0 {
			_, _ = h.Write(s)
		}
		if i%7 != 0 {
			_, _ = h.Write(p)
		}
		_, _ = h.Write(last)
		a = h.Sum(a[:0:0])
	}
	return c.text(a)
}

func digest(of func() hash.Hash, parts ...[]byte) []byte {
	h := of()
	for _, p := range parts {
		_, _ = h.Write(p)
	}
	return h.Sum(nil)
}

// stretch repeats b to n bytes.
func stretch(b []byte, n int) []byte {
	out := make([]byte, 0, n+len(b))
	for len(out) < n {
		out = append(out, b...)
	}
	return out[:n]
}

func (c *shaCrypt) text(sum []byte) string {
	var out []byte
	for _, t := range c.order {
		out = to64(out, uint(sum[t[0]])<<16|uint(sum[t[1]])<<8|uint(sum[t[2]]), 4)
	}
	if len(sum) == sha512.Size {
		return string(to64(out, uint(sum[63]), 2))
	}
	return string(to64(out, uint(sum[31])<<8|uint(sum[30]), 3))
}

// order256 and order512 are the order in which the bytes of the sum are written, three at a time.
func order256() (o [][3]int) {
	t := [3]int{0, 10, 20}
	for range 10 {
		o = append(o, t)
		t = [3]int{t[2] + 1, t[0] + 1, t[1] + 1}
	}
	return o
}

func order512() (o [][3]int) {
	t := [3]int{0, 21, 42}
	for range 21 {
		o = append(o, t)
		t = [3]int{t[1] + 1, t[2] + 1, t[0] + 1}
	}
	return o
}
