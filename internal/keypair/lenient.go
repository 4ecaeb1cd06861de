package keypair

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// parse parses a certificate; one that Go's parser refuses only as far as a server needs. A server sends a certificate
// unchanged: clients decide about its oddities.
func parse(der []byte) (*x509.Certificate, error) {
	c, err := x509.ParseCertificate(der)
	if err == nil && c.PublicKey != nil {
		return c, nil
	}
	lenient, lerr := parseLenient(der)
	if lerr == nil {
		return lenient, nil
	}
	if err == nil {
		err = lerr
	}
	return nil, err
}

// parts are encoded pieces of a certificate (RFC 5280, 4.1).
type parts struct {
	issuer, subject, key cryptobyte.String
	validity             cryptobyte.String // without its own tag
	extensions           cryptobyte.String // the list of them, without tags; may be empty
}

// partsOf splits a certificate, and ignores the pieces that it does not need.
func partsOf(der []byte) (p parts, ok bool) {
	const sequence = cbasn1.SEQUENCE
	in := cryptobyte.String(der)
	var whole, tbs, list cryptobyte.String
	context := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }
	ok = in.ReadASN1(&whole, sequence) && whole.ReadASN1(&tbs, sequence) &&
		tbs.SkipOptionalASN1(context(0).Constructed()) && // version
		tbs.SkipASN1(cbasn1.INTEGER) && // serial number
		tbs.SkipASN1(sequence) && // algorithm
		tbs.ReadASN1Element(&p.issuer, sequence) && tbs.ReadASN1(&p.validity, sequence) &&
		tbs.ReadASN1Element(&p.subject, sequence) &&
		tbs.ReadASN1Element(&p.key, sequence)
	if !ok {
		return p, false
	}
	ok = tbs.SkipOptionalASN1(context(1)) && tbs.SkipOptionalASN1(context(2)) // unique identifiers
	if ok && tbs.ReadASN1(&list, context(3).Constructed()) {
		list.ReadASN1(&p.extensions, sequence)
	}
	return p, true
}

func parseLenient(der []byte) (*x509.Certificate, error) {
	p, ok := partsOf(der)
	if !ok {
		return nil, errors.New("not a certificate of X.509")
	}
	out := &x509.Certificate{Raw: der, RawSubjectPublicKeyInfo: p.key, RawSubject: p.subject, RawIssuer: p.issuer}
	var err error
	if out.PublicKey, err = x509.ParsePKIXPublicKey(p.key); err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	for _, to := range []*time.Time{&out.NotBefore, &out.NotAfter} {
		rest, err := asn1.Unmarshal(p.validity, to)
		if err != nil {
			return nil, fmt.Errorf("validity: %w", err)
		}
		p.validity = rest
	}
	var subject pkix.RDNSequence
	if _, err := asn1.Unmarshal(p.subject, &subject); err == nil {
		out.Subject.FillFromRDNSequence(&subject)
	}
	out.DNSNames = dnsNames(p.extensions)
	return out, nil
}

// subjectAltName is the extension's identifier (RFC 5280, 4.2.1.6).
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// dnsNames returns the names in an extension subjectAltName, as far as they can be parsed.
func dnsNames(extensions cryptobyte.String) (list []string) {
	for !extensions.Empty() {
		var one, value, names, name cryptobyte.String
		var id asn1.ObjectIdentifier
		if !extensions.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&id) ||
			!one.SkipOptionalASN1(cbasn1.BOOLEAN) {
			return list
		}
		if !id.Equal(subjectAltName) || !one.ReadASN1(&value, cbasn1.OCTET_STRING) ||
			!value.ReadASN1(&names, cbasn1.SEQUENCE) {
			continue
		}
		for !names.Empty() {
			var tag cbasn1.Tag
			if !names.ReadAnyASN1(&name, &tag) {
				return list
			}
			if tag == cbasn1.Tag(2).ContextSpecific() {
				list = append(list, string(name))
			}
		}
	}
	return list
}

// names are a certificate's encoded subject and issuer.
func names(der []byte) (subject, issuer []byte, ok bool) {
	p, ok := partsOf(der)
	return p.subject, p.issuer, ok
}
