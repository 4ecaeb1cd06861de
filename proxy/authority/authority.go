// Package authority verifies certificates of peers against the authorities of a Secret, like nginx with
// ssl_client_certificate, ssl_verify_depth and ssl_crl.
//
// Invariants:
//   - A chain ends at a self-signed certificate of the Set. Its other certificates are intermediates.
//   - If there is a revocation list, each certificate of a chain needs a current one of its
//     issuer.
//   - Invalid input is an error, and never a Set that accepts more certificates.
package authority

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Bounds of a Set: certificates, revocation lists, and bytes of each file.
const (
	MaxCertificates = 256
	MaxLists        = 32
	MaxBytes        = 256 << 10
	MaxListBytes    = 1 << 20
)

// ErrUnknown means that no authority of the Set has signed the certificate.
var ErrUnknown = errors.New("no authority has signed the certificate")

// Set is a set of authorities. It does not change.
type Set struct {
	roots   *x509.CertPool
	between []*x509.Certificate
	all     *x509.CertPool
	// lists are revocation lists by the issuer's name; nil if there are none.
	lists map[string][]*list
	id    [sha256.Size]byte
}

// ID differs between Sets of different text.
func (s *Set) ID() [sha256.Size]byte { return s.id }

type list struct {
	*x509.RevocationList
	revoked map[string]struct{}
}

// Parse parses certificates in PEM, and revocation lists if crl is not empty.
func Parse(ca, crl []byte) (*Set, error) {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d ", len(ca))
	_, _ = h.Write(ca)
	_, _ = h.Write(crl)
	s := &Set{roots: x509.NewCertPool(), all: x509.NewCertPool(), id: [sha256.Size]byte(h.Sum(nil))}
	roots := 0
	n := 0
	err := blocks(ca, "CERTIFICATE", MaxBytes, func(der []byte) error {
		if n++; n > MaxCertificates {
			return fmt.Errorf("has more than %d certificates", MaxCertificates)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		s.all.AddCert(c)
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			roots++
			s.roots.AddCert(c)
		} else {
			s.between = append(s.between, c)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("ca.crt: %w", err)
	case n == 0:
		return nil, errors.New("ca.crt: has no certificate")
	case roots == 0:
		return nil, errors.New("ca.crt: has no self-signed certificate, at which a chain could end")
	}
	if len(crl) == 0 {
		return s, nil
	}
	return s, s.readLists(crl)
}

func (s *Set) readLists(crl []byte) error {
	s.lists = map[string][]*list{}
	n := 0
	err := blocks(crl, "X509 CRL", MaxListBytes, func(der []byte) error {
		if n++; n > MaxLists {
			return fmt.Errorf("has more than %d lists", MaxLists)
		}
		r, err := x509.ParseRevocationList(der)
		if err != nil {
			return err
		}
		for _, e := range r.Extensions {
			if e.Critical { // a partial or a delta list
				return fmt.Errorf("has the critical extension %v, which is not known", asn1.ObjectIdentifier(e.Id))
			}
		}
		l := &list{r, make(map[string]struct{}, len(r.RevokedCertificateEntries))}
		for _, e := range r.RevokedCertificateEntries {
			l.revoked[string(e.SerialNumber.Bytes())] = struct{}{}
		}
		r.RevokedCertificateEntries, r.Raw = nil, nil
		s.lists[string(r.RawIssuer)] = append(s.lists[string(r.RawIssuer)], l)
		return nil
	})
	if err == nil && n == 0 {
		err = errors.New("has no list")
	}
	if err != nil {
		return fmt.Errorf("ca.crl: %w", err)
	}
	return nil
}

func blocks(text []byte, kind string, most int, yield func(der []byte) error) error {
	if len(text) > most {
		return fmt.Errorf("is longer than %d bytes", most)
	}
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return nil
		}
		if b.Type != kind && !(kind == "CERTIFICATE" && b.Type == "TRUSTED CERTIFICATE") {
			continue
		}
		if err := yield(b.Bytes); err != nil {
			return err
		}
	}
}

// Authorities are those of the Set, which a handshake lists for clients.
func (s *Set) Authorities() *x509.CertPool { return s.all }

// Options of one verification.
type Options struct {
	// Depth is the maximum number of certificates between the peer's and the one at which a chain ends.
	Depth int
	// Usage is the required usage of the peer's certificate.
	Usage x509.ExtKeyUsage
	// Name is the DNS name or address that the certificate must be valid for; empty for any.
	Name string
	Now  time.Time
}

// Verify returns why the first certificate is invalid; the others are those that the peer sent with it. The error is
// ErrUnknown if no chain leads to an authority of the Set.
func (s *Set) Verify(certs []*x509.Certificate, o Options) error {
	if len(certs) == 0 {
		return errors.New("there is no certificate")
	}
	if u := certs[0].KeyUsage; o.Usage == x509.ExtKeyUsageClientAuth && u != 0 &&
		u&(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyAgreement) == 0 {
		return errors.New("the key of the certificate may not sign") // as OpenSSL
	}
	between := x509.NewCertPool()
	for _, c := range s.between {
		between.AddCert(c)
	}
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	chains, err := certs[0].Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: between, CurrentTime: o.Now,
		KeyUsages: []x509.ExtKeyUsage{o.Usage}, DNSName: o.Name})
	if err != nil {
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return ErrUnknown
		}
		return err
	}
	for _, chain := range chains {
		if err = s.chain(chain, o); err == nil {
			return nil
		}
	}
	return err
}

// chain checks the depth of a chain, and whether a certificate in it was revoked.
func (s *Set) chain(chain []*x509.Certificate, o Options) error {
	if between := len(chain) - 2; between > o.Depth {
		// as OpenSSL
		return fmt.Errorf("the chain has %d intermediate certificates; allowed: %d: %w", between, o.Depth, ErrUnknown)
	}
	if s.lists == nil {
		return nil
	}
	for i, c := range chain {
		issuer := chain[min(i+1, len(chain)-1)]
		if err := s.revoked(c, issuer, o.Now); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) revoked(c, issuer *x509.Certificate, now time.Time) error {
	found := false
	for _, l := range s.lists[string(c.RawIssuer)] {
		if now.Before(l.ThisUpdate) || !l.NextUpdate.IsZero() && now.After(l.NextUpdate) ||
			l.CheckSignatureFrom(issuer) != nil {
			continue
		}
		if _, is := l.revoked[string(c.SerialNumber.Bytes())]; is {
			return errors.New("the certificate is revoked")
		}
		found = true
	}
	if !found {
		return fmt.Errorf("there is no current revocation list of %q", c.Issuer.String())
	}
	return nil
}
