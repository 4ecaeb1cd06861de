// Package keypair parses a certificate with its key as found in Secrets: PEM of many programs, with extra text, old
// names of blocks and certificates that Go's own parser refuses.
//
// Invariants:
//   - Input is bounded before it is parsed: the number and size of certificates, and the size of the key.
//   - The key belongs to the first certificate.
package keypair

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds of a Secret's content. OpenSSL's clients accept chains of up to 100 KiB. A handshake with a key of 8,192 bits
// costs tens of milliseconds, and every client can cause it.
const (
	MaxCertificates = 32
	MaxChain        = 96 << 10 // bytes of all certificates
	maxKey          = 8 << 10  // bytes of a key
	MinRSA          = 1024     // bits
	MaxRSA          = 8192
)

// Parse parses certificates and a private key in PEM. The leaf is the first certificate that the key belongs to; its
// issuers follow in their order, wherever they were. For a certificate that Go's parser refuses, Leaf contains its
// names, its validity and its public key. A leaf without alternative names gets its common name as one. The error
// explains the fault to the Secret's owner.
func Parse(chain, key []byte) (*tls.Certificate, error) {
	list, err := certificates(chain)
	if err != nil {
		return nil, err
	}
	private, err := privateKey(key)
	if err != nil {
		return nil, err
	}
	leaf, at, err := leafOf(list, private)
	if err != nil {
		return nil, err
	}
	if !hasNames(leaf) && leaf.Subject.CommonName != "" {
		leaf.DNSNames = []string{leaf.Subject.CommonName}
	}
	return &tls.Certificate{Certificate: ordered(list, at), PrivateKey: private, Leaf: leaf}, nil
}

// EncodeKey returns the PEM block of the key that Parse finds in a text; nil if there is none.
func EncodeKey(key []byte) []byte {
	if b := keyBlock(key); b != nil {
		return pem.EncodeToMemory(b)
	}
	return nil
}

// certificates returns the DER of all certificate blocks.
func certificates(text []byte) (list [][]byte, err error) {
	text = bytes.TrimPrefix(text, byteOrderMark)
	size, others := 0, []string(nil)
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		switch b.Type {
		case "CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE":
		default:
			others = append(others, b.Type)
			continue
		}
		var whole asn1.RawValue
		rest, err := asn1.Unmarshal(b.Bytes, &whole)
		// OpenSSL's own form has trust settings after the certificate.
		if err != nil || len(rest) > 0 && b.Type != "TRUSTED CERTIFICATE" {
			return nil, fmt.Errorf("certificate %d is truncated or has extra bytes", len(list)+1)
		}
		list = append(list, whole.FullBytes)
		if size += len(whole.FullBytes); len(list) > MaxCertificates || size > MaxChain {
			return nil, fmt.Errorf("more than %d certificates or %d bytes of them", MaxCertificates, MaxChain)
		}
	}
	switch {
	case len(list) > 0:
		return list, nil
	case len(others) > 0:
		return nil, fmt.Errorf("no block CERTIFICATE, but %s", strings.Join(others[:min(len(others), 3)], ", "))
	}
	return nil, errors.New("no block CERTIFICATE in PEM")
}

// byteOrderMark is what some editors write at the start of a UTF-8 file.
var byteOrderMark = []byte("\ufeff")

// keyBlock returns the first block with a private key; nil if there is none.
func keyBlock(text []byte) *pem.Block {
	text = bytes.TrimPrefix(text, byteOrderMark)
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil || b.Type == "PRIVATE KEY" ||
			strings.HasSuffix(b.Type, " PRIVATE KEY") {
			return b
		}
	}
}

// signer is implemented by all private keys of crypto/tls.
type signer interface {
	crypto.Signer
	Equal(crypto.PrivateKey) bool
}

func privateKey(text []byte) (signer, error) {
	b := keyBlock(text)
	switch {
	case b == nil:
		return nil, errors.New("no block PRIVATE KEY in PEM")
	case b.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED"):
		return nil, errors.New("the private key is encrypted, which is not supported")
	case len(b.Bytes) > maxKey:
		return nil, fmt.Errorf("the private key has more than %d bytes", maxKey)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("the private key (%s): %w", b.Type, err)
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < MinRSA || n > MaxRSA {
			return nil, fmt.Errorf("the RSA key has %d bits; allowed: %d to %d", n, MinRSA, MaxRSA)
		}
		return k, nil
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return nil, fmt.Errorf("the key's curve is %s; allowed: P-256, P-384, P-521", k.Curve.Params().Name)
		}
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("a private key of type %T; allowed: RSA, ECDSA, Ed25519", key)
}

// parseKey parses a key by the name of its block, otherwise in one of the other forms: names of blocks are often wrong.
func parseKey(b *pem.Block) (key any, err error) {
	pkcs8 := func() (any, error) { return x509.ParsePKCS8PrivateKey(b.Bytes) }
	pkcs1 := func() (any, error) { return x509.ParsePKCS1PrivateKey(b.Bytes) }
	sec1 := func() (any, error) { return x509.ParseECPrivateKey(b.Bytes) }
	forms := []func() (any, error){pkcs8, pkcs1, sec1}
	switch b.Type {
	case "RSA PRIVATE KEY":
		forms = []func() (any, error){pkcs1, pkcs8}
	case "EC PRIVATE KEY":
		forms = []func() (any, error){sec1, pkcs8}
	}
	for i, form := range forms {
		k, e := form()
		if e == nil {
			return k, nil
		}
		if i == 0 {
			err = e
		}
	}
	return nil, err
}

// leafOf finds the certificate of the key.
func leafOf(list [][]byte, key signer) (leaf *x509.Certificate, at int, err error) {
	var wrong error
	for i, der := range list {
		c, err := parse(der)
		if err != nil {
			if i == 0 {
				wrong = fmt.Errorf("certificate 1: %w", err)
			}
			continue
		}
		if p, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && p.Equal(key.Public()) {
			return c, i, nil
		}
	}
	if wrong != nil {
		return nil, 0, wrong
	}
	return nil, 0, errors.New("the private key does not match any of the certificates")
}

// ordered returns the leaf, then its issuers; other certificates follow in their order. A chain that begins with its
// leaf stays unchanged.
func ordered(list [][]byte, leaf int) [][]byte {
	if leaf == 0 {
		return list
	}
	out := [][]byte{list[leaf]}
	rest := slices.Delete(slices.Clone(list), leaf, leaf+1)
	for last := list[leaf]; ; {
		_, issuer, ok := names(last)
		i := slices.IndexFunc(rest, func(der []byte) bool {
			subject, _, known := names(der)
			return ok && known && bytes.Equal(subject, issuer)
		})
		if i < 0 {
			return append(out, rest...)
		}
		last = rest[i]
		out = append(out, last)
		rest = slices.Delete(rest, i, i+1)
	}
}

func hasNames(c *x509.Certificate) bool {
	return len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs) > 0
}
