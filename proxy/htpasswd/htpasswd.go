// Package htpasswd compares passwords with hashes in the formats of Apache's htpasswd and openssl passwd.
//
// Invariants:
//   - Digests are compared in constant time.
//   - The cost of a comparison is bounded, whatever a hash requests.
package htpasswd

import (
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// Bounds of what hashes may request.
const (
	// MaxCost is bcrypt's logarithm of rounds: about 0.8 s.
	MaxCost = 14
	// MaxRounds bounds the rounds of SHA-crypt: about 0.1 s.
	MaxRounds = 100_000
	// MaxPassword is the longest password, in bytes.
	MaxPassword = 256
)

// Kind is the scheme of a hash.
type Kind uint8

// The kinds. Unknown hashes match no password.
const (
	Unknown   Kind = iota
	Bcrypt         // $2y$, $2a$, $2b$
	APR1           // $apr1$, and crypt's $1$
	SHA            // {SHA}
	SSHA           // {SSHA}: with a salt
	SHA256         // $5$
	SHA512         // $6$
	Plaintext      // {PLAIN}
)

// Of returns the kind of a hash by its prefix.
func Of(hash string) Kind {
	for _, k := range []struct {
		begin string
		kind  Kind
	}{
		{"$2y$", Bcrypt}, {"$2a$", Bcrypt}, {"$2b$", Bcrypt}, {apr1, APR1}, {md5, APR1},
		{"{SHA}", SHA}, {"{SSHA}", SSHA}, {"$5$", SHA256}, {"$6$", SHA512}, {"{PLAIN}", Plaintext},
	} {
		if strings.HasPrefix(hash, k.begin) {
			return k.kind
		}
	}
	return Unknown
}

// Slow reports whether a comparison takes 0.1 ms or more, to make guessing slow.
func (k Kind) Slow() bool { return k == Bcrypt || k == APR1 || k == SHA256 || k == SHA512 }

// Check returns what is wrong with a hash; nil if passwords can be compared with it.
func Check(hash string) error {
	switch Of(hash) {
	case Bcrypt:
		if cost, err := bcrypt.Cost([]byte(hash)); err != nil {
			return fmt.Errorf("bcrypt: %w", err)
		} else if cost > MaxCost {
			return fmt.Errorf("bcrypt of cost %d; up to %d are allowed", cost, MaxCost)
		}
	case APR1:
		if _, salt, sum := splitMD5(hash); salt == "" || len(sum) != 22 {
			return errors.New("not salt and 22 characters, as apr1 has")
		}
	case SHA:
		if _, err := decode(hash[len("{SHA}"):], sha1.Size, sha1.Size); err != nil {
			return fmt.Errorf("{SHA}: %w", err)
		}
	case SSHA:
		if _, err := decode(hash[len("{SSHA}"):], sha1.Size+1, 256); err != nil {
			return fmt.Errorf("{SSHA}: %w", err)
		}
	case SHA256, SHA512:
		if _, err := splitSHA(hash); err != nil {
			return err
		}
	case Unknown:
		return errors.New("a hash of none of the known kinds: bcrypt, $apr1$, $1$, $5$, $6$, {SHA}, {SSHA}, {PLAIN}")
	}
	return nil
}

// Verify reports whether the password matches the hash.
func Verify(hash string, password []byte) bool {
	if len(password) > MaxPassword || Check(hash) != nil {
		return false
	}
	switch Of(hash) {
	case Bcrypt:
		return bcrypt.CompareHashAndPassword([]byte(hash), password) == nil
	case APR1:
		magic, salt, sum := splitMD5(hash)
		return equal(sum, md5Crypt(magic, salt, password))
	case SHA:
		want, _ := decode(hash[len("{SHA}"):], sha1.Size, sha1.Size)
		sum := sha1.Sum(password)
		return subtle.ConstantTimeCompare(want, sum[:]) == 1
	case SSHA:
		want, _ := decode(hash[len("{SSHA}"):], sha1.Size+1, 256)
		h := sha1.New()
		_, _ = h.Write(password)
		_, _ = h.Write(want[sha1.Size:])
		return subtle.ConstantTimeCompare(want[:sha1.Size], h.Sum(nil)) == 1
	case SHA256, SHA512:
		c, err := splitSHA(hash)
		return err == nil && equal(c.sum, c.crypt(password))
	case Plaintext:
		return equal(hash[len("{PLAIN}"):], string(password))
	}
	return false
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func decode(s string, least, most int) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	if len(b) < least || len(b) > most {
		return nil, fmt.Errorf("%d bytes where %d are wanted", len(b), least)
	}
	return b, nil
}

// Parse parses the lines of an htpasswd file, "name:hash". The error names invalid lines by number, never by content.
func Parse(text string) (users map[string]string, err error) {
	users = map[string]string{}
	var errs []error
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		hash, _, _ = strings.Cut(hash, ":") // the rest is a comment, as in nginx
		if !ok || name == "" {
			errs = append(errs, fmt.Errorf("line %d is not name:hash", n))
			continue
		}
		if err := Check(hash); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		if _, twice := users[name]; !twice { // the first one applies, as in nginx
			users[name] = hash
		}
	}
	return users, errors.Join(errs...)
}
