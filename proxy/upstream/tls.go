package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"wayleave.dev/proxy/authority"
	"wayleave.dev/proxy/table"
)

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
func (s *Set) config(by *table.EndpointTLS, protocols []string) (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: true, NextProtos: protocols}
	if by == nil {
		return c, nil
	}
	c.MinVersion, c.MaxVersion, c.CipherSuites = by.Least, by.Most, by.Ciphers
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
		return nil, fmt.Errorf("the authorities of %s, which must have signed the certificates of endpoints, are not there", by.Authority)
	}
	c.VerifyConnection = func(said tls.ConnectionState) error {
		return set.Verify(said.PeerCertificates, authority.Options{Depth: by.Depth, Usage: x509.ExtKeyUsageServerAuth, Name: by.Name, Now: time.Now()})
	}
	return c, nil
}
