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

// TLS is what endpoints may speak that is encrypted. The zero value allows TLS 1.2 and 1.3 with key exchanges that
// have forward secrecy.
type TLS struct {
	// MinVersion is the oldest version, as crypto/tls numbers them; 0 for TLS 1.2.
	MinVersion uint16
	// RSAKeyExchange allows cipher suites without forward secrecy, which servers of old have alone.
	RSAKeyExchange bool
}

// rsaKeyExchange are the suites that RSAKeyExchange adds; those with RC4 and 3DES are not among them.
func rsaKeyExchange() []uint16 {
	return []uint16{
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
	}
}

// SetTLS replaces what endpoints may speak, for connections that are opened. The certificate of an endpoint is not
// checked (see DialFor).
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
	// Authority are the authorities of a key; nil for none that are good.
	Authority(key string) *authority.Set
	// Pair is the certificate of a key; nil for none.
	Pair(key string) *tls.Certificate
}

// config is that of a handshake with an endpoint. Without rules, and without authorities, the
// endpoint's certificate is not checked, as ingress-nginx does not by default: endpoints are
// addresses, which certificates do not name. What is asked for and is not there is an error.
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
			return nil, fmt.Errorf("certificate %s, which endpoints are to be shown, is not there", by.Certificate)
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
			fmt.Errorf("the authorities of %s, which must have signed the certificates of endpoints, are not there",
				by.Authority)
	}
	c.VerifyConnection = func(said tls.ConnectionState) error {
		return set.Verify(said.PeerCertificates, authority.Options{Depth: by.Depth, Usage: x509.ExtKeyUsageServerAuth,
			Name: by.Name, Now: time.Now()})
	}
	return c, nil
}
