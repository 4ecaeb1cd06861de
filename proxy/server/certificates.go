package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"sync"
	"sync/atomic"
	"time"

	"wayleave.dev/internal/keypair"
	"wayleave.dev/proxy/authority"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// Certificates holds the certificates for handshakes. Its methods may be called concurrently.
type Certificates struct {
	// made is the self-signed certificate for names without one.
	made    *tls.Certificate
	parsed  atomic.Pointer[map[string]*tls.Certificate]
	table   atomic.Pointer[table.Table]
	general atomic.Pointer[string] // key of the default certificate
	// authorities are those of clients and endpoints, by key. configs are those of handshakes that request client
	// certificates, or have their own ciphers.
	authorities atomic.Pointer[map[string]*authority.Set]
	configs     handshakes

	mu       sync.Mutex
	problems map[string]string
}

// NewCertificates returns an empty set, with a self-signed certificate for all names without one.
func NewCertificates() (*Certificates, error) {
	made, err := selfSigned()
	if err != nil {
		return nil, fmt.Errorf("default certificate: %w", err)
	}
	c := &Certificates{made: made, problems: map[string]string{}}
	c.parsed.Store(&map[string]*tls.Certificate{})
	c.authorities.Store(&map[string]*authority.Set{})
	none := ""
	c.general.Store(&none)
	return c, nil
}

// selfSigned creates a certificate that is valid for no name, for clients that do not verify.
func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Wayleave"},
			CommonName: "Wayleave Ingress default certificate"},
		DNSNames: []string{"ingress.invalid"}, NotBefore: time.Now().Add(-24 * time.Hour),
		NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// ParseCertificate parses a pair as the proxy uses it. The error explains to the Secret's owner what is wrong. An
// expired certificate is accepted: clients report it.
func ParseCertificate(c schema.Certificate) (*tls.Certificate, error) {
	switch {
	case len(c.Chain) == 0:
		return nil, errors.New("tls.crt is empty")
	case len(c.Priv) == 0:
		return nil, errors.New("tls.key is empty")
	}
	pair, err := keypair.Parse(c.Chain, c.Priv)
	if err != nil {
		return nil, fmt.Errorf("tls.crt and tls.key: %w", err)
	}
	return pair, nil
}

// Set changes certificates. An invalid one does not replace the last valid one of its key.
func (c *Certificates) Set(some map[string]schema.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replace(maps.Clone(*c.parsed.Load()), maps.Clone(*c.authorities.Load()), some)
}

// Replace replaces all certificates. Valid ones of keys that remain are kept if the new one is invalid.
func (c *Certificates) Replace(all map[string]schema.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := maps.Clone(*c.parsed.Load())
	gone := func(k string) bool { _, ok := all[k]; return !ok }
	maps.DeleteFunc(next, func(k string, _ *tls.Certificate) bool { return gone(k) })
	sets := maps.Clone(*c.authorities.Load())
	maps.DeleteFunc(sets, func(k string, _ *authority.Set) bool { return gone(k) })
	maps.DeleteFunc(c.problems, func(k, _ string) bool { return gone(k) })
	c.replace(next, sets, all)
}

func (c *Certificates) replace(next map[string]*tls.Certificate, sets map[string]*authority.Set,
	some map[string]schema.Certificate) {
	defer func() {
		c.parsed.Store(&next)
		c.authorities.Store(&sets)
		c.configs.forget()
	}()
	for k, raw := range some {
		delete(c.problems, k)
		if delete(sets, k); len(raw.CA) > 0 { // neither invalid authorities nor old ones in their place may be used
			set, err := authority.Parse(raw.CA, raw.CRL)
			if err != nil {
				c.problems[k] = err.Error()
			} else {
				sets[k] = set
			}
		}
		if len(raw.CA) > 0 && len(raw.Chain) == 0 {
			delete(next, k)
			continue
		}
		pair, err := ParseCertificate(raw)
		if err != nil {
			c.problems[k] = err.Error()
			continue
		}
		next[k] = pair
	}
}

// Authority returns the authorities of a key; nil if there are no valid ones.
func (c *Certificates) Authority(key string) *authority.Set { return (*c.authorities.Load())[key] }

// Pair returns the certificate of a key; nil for none.
func (c *Certificates) Pair(key string) *tls.Certificate { return (*c.parsed.Load())[key] }

// Delete removes certificates.
func (c *Certificates) Delete(keys []string) {
	if len(keys) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	next, sets := maps.Clone(*c.parsed.Load()), maps.Clone(*c.authorities.Load())
	for _, k := range keys {
		delete(next, k)
		delete(sets, k)
		delete(c.problems, k)
	}
	c.parsed.Store(&next)
	c.authorities.Store(&sets)
	c.configs.forget()
}

// SetTable replaces the hosts, which decide the certificate of each name.
func (c *Certificates) SetTable(t *table.Table) { c.table.Store(t) }

// SetDefault sets the certificate for names that no host has; empty for a self-signed one.
func (c *Certificates) SetDefault(key string) { c.general.Store(&key) }

// Problems returns the keys whose last certificate is invalid, with the reason.
func (c *Certificates) Problems() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.problems)
}

// Len returns the number of valid certificates.
func (c *Certificates) Len() int { return len(*c.parsed.Load()) }

// For returns the certificate for a handshake. It is never another host's: a host without a valid certificate gets the
// default one. Of two, the client gets the one that it can use, and one without RSA if it can use both: that costs the
// proxy less.
func (c *Certificates) For(h *tls.ClientHelloInfo) *tls.Certificate {
	first, other := c.candidates(h.ServerName)
	if other == nil {
		return first
	}
	if isRSA(first) {
		first, other = other, first
	}
	if h.SupportsCertificate(first) != nil && h.SupportsCertificate(other) == nil {
		return other
	}
	return first
}

func isRSA(c *tls.Certificate) bool {
	_, ok := c.Leaf.PublicKey.(*rsa.PublicKey)
	return ok
}

// candidates returns the certificates for a name as a client sent it; other is nil if there is one.
func (c *Certificates) candidates(name string) (first, other *tls.Certificate) {
	var scratch [256]byte
	lower := append(scratch[:0], name...)
	lower = table.Name(lower, lower)
	own, wild, rest, known := c.table.Load().CertificateOf(lower)
	switch {
	case own.First != "":
		first, other = c.pairs(own, nil)
	case known:
		if first, other = c.pairs(wild, lower); first == nil {
			first, other = c.pairs(rest, lower)
		}
	default:
		first, other = c.pairs(rest, nil)
	}
	if first == nil {
		first = (*c.parsed.Load())[*c.general.Load()]
	}
	if first == nil {
		first = c.made
	}
	return first, other
}

// pairs returns the valid certificates of a host, and only those that are for a name unless it is nil.
func (c *Certificates) pairs(keys table.CertificateKeys, name []byte) (first, other *tls.Certificate) {
	parsed := *c.parsed.Load()
	first, other = parsed[keys.First], parsed[keys.Other]
	if name != nil {
		first, other = covering(first, name), covering(other, name)
	}
	if first == nil {
		first, other = other, nil
	}
	return first, other
}

// covering returns the certificate if it is valid for the name.
func covering(p *tls.Certificate, name []byte) *tls.Certificate {
	if p == nil || p.Leaf.VerifyHostname(string(name)) != nil {
		return nil
	}
	return p
}

// Covers reports whether a client that requested one name in its handshake may send requests for another host on the
// same connection: its certificate must be valid for that host, too. Of two, both must be: which one the client has is
// not known.
func (c *Certificates) Covers(name string, host []byte) bool {
	h := table.Name(host, nil)
	n := table.Name([]byte(name), nil)
	if name == "" || string(h) == string(n) {
		return true
	}
	first, other := c.candidates(name)
	return covering(first, h) != nil && (other == nil || covering(other, h) != nil)
}

// config is for all handshakes. crypto/tls creates its ticket keys, and rotates them daily.
func (c *Certificates) config() *tls.Config {
	general := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return c.For(h), nil },
	}
	general.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		return c.handshake(general,
			h.ServerName), nil
	}
	return general
}
