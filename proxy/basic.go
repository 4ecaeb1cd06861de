package proxy

import (
	"bytes"
	"encoding/base64"
	"errors"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
)

var errBusy = errors.New("too many passwords are being compared")

// basic checks a name and a password (RFC 7617).
func (x *exchange) basic(a *schema.Auth) (answered bool) {
	right, err := x.signedIn(a)
	switch {
	case err != nil:
		x.fail(503, err)
	case !right:
		x.challenge(a)
	default:
		return false
	}
	return true
}

// challenge requests a name and a password.
func (x *exchange) challenge(a *schema.Auth) {
	x.reply(401, message.Fields{{Name: []byte("WWW-Authenticate"), Value: challenge(a.Realm)}})
}

// signedIn reports whether the request has the name and the password of a user; the error means that there was no time
// to check.
func (x *exchange) signedIn(a *schema.Auth) (bool, error) {
	name, password, ok := credentials(x.r.Fields.Get("Authorization"))
	if !ok {
		return false, nil
	}
	hash, known := a.Users[string(name)]
	if !known { // an unknown name takes as long as a known one
		for _, hash = range a.Users {
			break
		}
	}
	who := guesser{x.match.Path.Namespace(), clientOf(x.who())}
	right, err := x.p.passwords.verify(x.ctx, who, hash, password)
	x.opt.signed = right && known && err == nil
	return x.opt.signed, err
}

// challenge quotes the realm; characters that a quoted string cannot contain are left out.
func challenge(realm string) []byte {
	v := []byte(`Basic realm="`)
	for i := range len(realm) {
		switch c := realm[i]; {
		case c < ' ' || c == 0x7f:
		case c == '"' || c == '\\':
			v = append(v, '\\', c)
		default:
			v = append(v, c)
		}
	}
	return append(v, '"')
}

// maxCredentials bounds the field Authorization.
const maxCredentials = 4 << 10

// credentials parses the field Authorization.
func credentials(field []byte) (name, password []byte, ok bool) {
	scheme, rest, ok := bytes.Cut(field, []byte(" "))
	if !ok || len(field) > maxCredentials || !message.EqualFold(scheme, "basic") {
		return nil, nil, false
	}
	plain, err := base64.StdEncoding.Strict().AppendDecode(nil, bytes.Trim(rest, " "))
	if err != nil {
		return nil, nil, false
	}
	return bytes.Cut(plain, []byte(":"))
}
