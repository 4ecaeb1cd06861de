package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"

	"wayleave.dev/proxy/table"
)

// maxHandshakes bounds the cached configurations.
const maxHandshakes = 1024

// handshakes are the configurations of names with special requirements. The zero value is ready.
type handshakes struct {
	mu   sync.Mutex
	made map[string]*tls.Config
}

// forget drops all configurations, because authorities have changed.
func (h *handshakes) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made = nil
}

// handshake returns the configuration for a name as a client sent it; nil for the general one. Clients are asked for a
// certificate, and the handshake continues without one: the response to the request explains the fault (see
// proxy.Proxy). crypto/tls takes the ticket keys from the general configuration.
func (c *Certificates) handshake(general *tls.Config, name string) *tls.Config {
	var scratch [256]byte
	lower := append(scratch[:0], name...)
	lower = table.Name(lower, lower)
	keys, ciphers := c.table.Load().Handshake(lower)
	if len(keys)+len(ciphers) == 0 {
		return nil
	}
	id := fmt.Sprint(keys, ciphers)
	c.configs.mu.Lock()
	defer c.configs.mu.Unlock()
	if made := c.configs.made[id]; made != nil {
		return made
	}
	made := general.Clone()
	made.GetConfigForClient = nil
	if len(keys) > 0 {
		made.ClientAuth = tls.RequestClientCert
		made.ClientCAs = c.named(keys)
	}
	if len(ciphers) > 0 {
		made.CipherSuites = ciphers
		if !slices.ContainsFunc(ciphers, fitForHTTP2) {
			made.NextProtos = []string{"http/1.1"}
		}
	}
	if c.configs.made == nil || len(c.configs.made) >= maxHandshakes {
		c.configs.made = map[string]*tls.Config{}
	}
	c.configs.made[id] = made
	return made
}

// named returns the authorities whose names are sent to clients; nil, which means any, if one is missing.
func (c *Certificates) named(keys []string) *x509.CertPool {
	if len(keys) != 1 {
		return nil
	}
	if set := c.Authority(keys[0]); set != nil {
		return set.Authorities()
	}
	return nil
}

// fitForHTTP2 reports whether HTTP/2 may use a cipher suite (RFC 9113, appendix A).
func fitForHTTP2(id uint16) bool {
	switch id {
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return false
}
