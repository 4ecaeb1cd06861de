package upstream

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"wayleave.dev/proxy/authority"
	"wayleave.dev/proxy/schema"
)

// TLS restricts encryption to endpoints. The zero value permits TLS 1.2 and 1.3 with key exchanges that have forward
// secrecy.
type TLS struct {
	// MinVersion is the oldest version, in crypto/tls's numbers; 0 for TLS 1.2.
	MinVersion uint16
	// RSAKeyExchange permits cipher suites without forward secrecy, because some old servers have no others.
	RSAKeyExchange bool
}

// rsaKeyExchange are the suites that RSAKeyExchange adds; those with RC4 and 3DES are not among them.
func rsaKeyExchange() []uint16 {
	return []uint16{
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
	}
}

// SetTLS replaces the restrictions for later connections. The certificate of an endpoint is not verified (see DialFor).
func (s *Set) SetTLS(t TLS) {
	c := &tls.Config{InsecureSkipVerify: true, MinVersion: cmp.Or(t.MinVersion, tls.VersionTLS12)}
	if t.RSAKeyExchange {
		for _, suite := range tls.CipherSuites() {
			c.CipherSuites = append(c.CipherSuites, suite.ID)
		}
		c.CipherSuites = append(c.CipherSuites, rsaKeyExchange()...)
	}
	s.tls.Store(c)
}

// Keys are certificates and authorities by key. Its methods may be called concurrently.
type Keys interface {
	// Authority returns the authorities of a key; nil if there are no valid ones.
	Authority(key string) *authority.Set
	// Pair returns the certificate of a key; nil for none.
	Pair(key string) *tls.Certificate
}

// config returns that of a handshake with an endpoint. Without rules, and without authorities, the endpoint's
// certificate is not verified, like ingress-nginx's default: endpoints are addresses, which certificates do not name. A
// requested key that does not exist is an error.
func (s *Set) config(by *schema.EndpointTLS, protocols []string) (*tls.Config, error) {
	c := s.tls.Load()
	if by == nil && len(protocols) == 0 {
		return c, nil
	}
	c = c.Clone()
	if c.NextProtos = protocols; by == nil {
		return c, nil
	}
	c.MinVersion, c.MaxVersion = cmp.Or(by.Least, c.MinVersion), by.Most
	if len(by.Ciphers) > 0 {
		c.CipherSuites = by.Ciphers
	}
	if by.SendName {
		c.ServerName = by.Name
	}
	if by.Certificate != "" {
		var pair *tls.Certificate
		if s.settings.Keys != nil {
			pair = s.settings.Keys.Pair(by.Certificate)
		}
		if pair == nil {
			return nil, fmt.Errorf("client certificate %s for endpoints does not exist", by.Certificate)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	if by.Authority == "" {
		return c, nil
	}
	var set *authority.Set
	if s.settings.Keys != nil {
		set = s.settings.Keys.Authority(by.Authority)
	}
	if set == nil {
		return nil,
			fmt.Errorf("the authorities %s for certificates of endpoints do not exist",
				by.Authority)
	}
	c.VerifyConnection = func(said tls.ConnectionState) error {
		return set.Verify(said.PeerCertificates, authority.Options{Depth: by.Depth, Usage: x509.ExtKeyUsageServerAuth,
			Name: by.Name, Now: time.Now()})
	}
	return c, nil
}
