package upstream

import (
	"cmp"
	"crypto/tls"
)

// TLS is what endpoints may speak that is encrypted. The zero value allows TLS 1.2 and 1.3 with key exchanges that
// have forward secrecy.
type TLS struct {
	// MinVersion is the oldest version, as crypto/tls numbers them; 0 for TLS 1.2.
	MinVersion uint16 `json:"minVersion,omitempty"`
	// RSAKeyExchange allows cipher suites without forward secrecy, which servers of old have alone.
	RSAKeyExchange bool `json:"rsaKeyExchange,omitempty"`
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
