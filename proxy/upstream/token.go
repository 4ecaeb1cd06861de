package upstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// Token names an endpoint to clients: the same for the same address and
// Settings.Secret, in every proxy. The address cannot be read from it.
func (e *Endpoint) Token() string {
	if t := e.token.Load(); t != nil {
		return *t
	}
	h := hmac.New(sha256.New, append([]byte("wayleave affinity\n"), e.set.settings.Secret...))
	_, _ = h.Write([]byte(e.text))
	t := hex.EncodeToString(h.Sum(nil)[:16])
	e.token.Store(&t)
	return t
}

// Named finds the endpoint of a token. One that drains is found only while no other is
// there.
func (b *Backend) Named(token []byte) *Endpoint {
	from := b.fresh
	if len(from) == 0 {
		from = b.all
	}
	for _, e := range from {
		if e.Token() == string(token) {
			return e
		}
	}
	return nil
}

// Fit says whether the endpoint may be tried: it is not ejected, and not in tried.
func (e *Endpoint) Fit(tried []*Endpoint) bool { return e.fit(time.Now().UnixNano(), tried) }
