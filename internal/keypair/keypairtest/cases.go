// Package keypairtest contains certificates with their keys as found in Secrets, for tests and for a comparison with
// nginx.
package keypairtest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Name is the host that the certificates are for.
const Name = "odd.example"

// Case is the pair of a Secret.
type Case struct {
	Name       string
	Chain, Key []byte
	// Refused is a part of the error; empty for a valid pair.
	Refused string
	// Unread means that Go's own parser refuses the leaf.
	Unread bool
}

// Cases returns all of them. dir is this repository's internal/keypair/testdata.
func Cases(dir string) ([]Case, error) {
	m := &maker{}
	list := slices.Concat(m.keys(), m.text(), m.chains(), m.contents(), m.hostile())
	files, err := fromFiles(dir)
	return append(list, files...), errors.Join(m.err, err)
}

// maker creates certificates, and records the first error.
type maker struct {
	err    error
	serial int64
}

// pair is a certificate with its key.
type pair struct {
	der []byte
	key crypto.Signer
	tpl *x509.Certificate
}

func (m *maker) note(err error) {
	if m.err == nil {
		m.err = err
	}
}

// issue creates a certificate that by has signed, or a self-signed one if by is nil.
func (m *maker) issue(key crypto.Signer, by *pair, change func(*x509.Certificate)) *pair {
	m.serial++
	t := &x509.Certificate{
		SerialNumber: big.NewInt(m.serial), Subject: pkix.Name{CommonName: Name}, DNSNames: []string{Name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(t)
	}
	parent, signer := t, key
	if by != nil {
		parent, signer = by.tpl, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	m.note(err)
	return &pair{der, key, t}
}

func (m *maker) ec(c elliptic.Curve) crypto.Signer {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	m.note(err)
	return k
}

func (m *maker) authority(name string, by *pair) *pair {
	return m.issue(m.ec(elliptic.P256()), by, func(t *x509.Certificate) {
		t.Subject, t.DNSNames, t.IsCA, t.KeyUsage = pkix.Name{CommonName: name}, nil, true, x509.KeyUsageCertSign
	})
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func crt(list ...*pair) (out []byte) {
	for _, p := range list {
		out = append(out, block("CERTIFICATE", p.der)...)
	}
	return out
}

func (m *maker) pkcs8(k crypto.Signer) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	m.note(err)
	return block("PRIVATE KEY", der)
}

func (m *maker) sec1(k crypto.Signer) []byte {
	der, err := x509.MarshalECPrivateKey(k.(*ecdsa.PrivateKey))
	m.note(err)
	return block("EC PRIVATE KEY", der)
}

// keys are kinds of keys, in each form.
func (m *maker) keys() (list []Case) {
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		p := m.issue(m.ec(c), nil, nil)
		list = append(list, Case{Name: "ECDSA " + c.Params().Name + ", PKCS #8", Chain: crt(p), Key: m.pkcs8(p.key)},
			Case{Name: "ECDSA " + c.Params().Name + ", SEC 1", Chain: crt(p), Key: m.sec1(p.key)})
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	m.note(err)
	p := m.issue(ed, nil, nil)
	list = append(list, Case{Name: "Ed25519", Chain: crt(p), Key: m.pkcs8(p.key)})
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	m.note(err)
	q := m.issue(k, nil, nil)
	return append(list, Case{Name: "RSA 2048, PKCS #8", Chain: crt(q), Key: m.pkcs8(k)},
		Case{Name: "RSA 2048, PKCS #1", Chain: crt(q), Key: block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k))},
		Case{Name: "RSA 2048, PKCS #1 called PKCS #8", Chain: crt(q),
			Key: block("PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k))})
}

// text has cases with extra text in files.
func (m *maker) text() []Case {
	ca := m.authority("text CA", nil)
	p := m.issue(m.ec(elliptic.P256()), ca, nil)
	chain, key := string(crt(p, ca)), string(m.pkcs8(p.key))
	lines := func(s string, f func(string) string) string {
		var b strings.Builder
		for line := range strings.Lines(s) {
			b.WriteString(f(strings.TrimSuffix(line, "\n")) + "\n")
		}
		return b.String()
	}
	crlf := func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
	trail := func(s string) string { return lines(s, func(l string) string { return l + "  " }) }
	indent := func(s string) string { return lines(s, func(l string) string { return "  " + l }) }
	text := "subject=CN = odd.example\nissuer=CN = text CA\n"
	list := []Case{
		{Name: "lines that end in CR LF", Chain: []byte(crlf(chain)), Key: []byte(crlf(key))},
		{Name: "text before, between and behind", Chain: []byte(text + string(crt(p)) + text + string(crt(ca)) + text),
			Key: []byte(text + key + text)},
		{Name: "no line's end at the end", Chain: []byte(strings.TrimSpace(chain)),
			Key: []byte(strings.TrimSpace(key))},
		{Name: "empty lines", Chain: []byte("\n\n" + string(crt(p)) + "\n\n\n" + string(crt(ca)) + "\n\n"),
			Key: []byte("\n" + key + "\n")},
		{Name: "spaces at the ends of lines", Chain: []byte(trail(chain)), Key: []byte(trail(key))},
		{Name: "the key in tls.crt, too", Chain: []byte(key + chain), Key: []byte(key)},
		{Name: "the chain in tls.key, too", Chain: []byte(chain), Key: []byte(chain + key)},
		{Name: "all in both", Chain: []byte(chain + key), Key: []byte(chain + key)},
		{Name: "base64 in one line", Chain: []byte(oneLine(chain)), Key: []byte(oneLine(key))},
		{Name: "X509 CERTIFICATE", Chain: block("X509 CERTIFICATE", p.der), Key: []byte(key)},
		{Name: "all lines indented", Chain: []byte(indent(chain)), Key: []byte(indent(key)),
			Refused: "no block CERTIFICATE"},
		{Name: "a byte-order mark in front", Chain: []byte("\ufeff" + chain), Key: []byte("\ufeff" + key)},
		{Name: "a binary certificate", Chain: p.der, Key: []byte(key), Refused: "no block CERTIFICATE"},
		{Name: "base64 of the PEM", Chain: []byte("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUI="), Key: []byte(key),
			Refused: "no block CERTIFICATE"},
		{Name: "no key in tls.key", Chain: []byte(chain), Key: []byte(chain), Refused: "no block PRIVATE KEY"},
		{Name: "no certificate in tls.crt", Chain: []byte(key), Key: []byte(key),
			Refused: "no block CERTIFICATE, but PRIVATE KEY"},
		{Name: "a certificate that is cut off", Chain: block("CERTIFICATE", p.der[:len(p.der)/2]), Key: []byte(key),
			Refused: "truncated or has extra bytes"},
		{Name: "bytes behind a certificate", Chain: block("CERTIFICATE", append(bytes.Clone(p.der), 0)),
			Key: []byte(key), Refused: "truncated or has extra bytes"},
	}
	return list
}

// oneLine writes the base64 of each block in one line.
func oneLine(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "-----END") {
			b.WriteByte('\n')
		}
		if strings.HasPrefix(line, "-----") {
			b.WriteString(line)
		} else {
			b.WriteString(strings.TrimSpace(line))
		}
	}
	return b.String()
}

// chains are orders of certificates.
func (m *maker) chains() []Case {
	root := m.authority("root", nil)
	middle := m.authority("middle", root)
	p := m.issue(m.ec(elliptic.P256()), middle, nil)
	other := m.issue(m.ec(elliptic.P256()), nil, nil)
	expired := m.issue(m.ec(elliptic.P256()), nil, func(t *x509.Certificate) {
		t.Subject, t.IsCA, t.KeyUsage = pkix.Name{CommonName: "expired"}, true, x509.KeyUsageCertSign
		t.NotBefore, t.NotAfter = time.Now().AddDate(-2, 0, 0), time.Now().AddDate(-1, 0, 0)
	})
	key := m.pkcs8(p.key)
	return []Case{
		{Name: "leaf and issuers", Chain: crt(p, middle, root), Key: key},
		{Name: "leaf alone", Chain: crt(p), Key: key},
		{Name: "the leaf last", Chain: crt(root, middle, p), Key: key},
		{Name: "the leaf between its issuers", Chain: crt(middle, p, root), Key: key},
		{Name: "issuers in the wrong order", Chain: crt(p, root, middle), Key: key},
		{Name: "the leaf twice", Chain: crt(p, p, middle), Key: key},
		{Name: "a stranger behind", Chain: crt(p, middle, other), Key: key},
		{Name: "an expired CA in the bundle", Chain: crt(p, middle, expired), Key: key},
		{Name: "another certificate's key", Chain: crt(other), Key: key, Refused: "does not match any"},
		{Name: "the key of a CA in the bundle", Chain: crt(p, middle), Key: m.pkcs8(other.key),
			Refused: "does not match any"},
		{Name: "a CA as leaf", Chain: crt(root), Key: m.pkcs8(root.key)},
	}
}

// contents are unusual leaves.
func (m *maker) contents() []Case {
	one := func(name string, unread bool, change func(*x509.Certificate)) Case {
		p := m.issue(m.ec(elliptic.P256()), nil, change)
		return Case{Name: name, Chain: crt(p), Key: m.pkcs8(p.key), Unread: unread}
	}
	extension := func(value []byte) pkix.Extension { return pkix.Extension{Id: []int{2, 5, 29, 17}, Value: value} }
	names := append([]byte{0x30, 13, 0x82, 11}, Name...)
	return []Case{
		one("expired", false, func(t *x509.Certificate) {
			t.NotBefore, t.NotAfter = time.Now().AddDate(-2, 0, 0), time.Now().AddDate(-1, 0, 0)
		}),
		one("not yet valid", false, func(t *x509.Certificate) { t.NotBefore = time.Now().AddDate(0, 1, 0) }),
		one("valid until 9999", false, func(t *x509.Certificate) {
			t.NotAfter = time.Date(9999, 12, 31, 23, 59, 59,
				0, time.UTC)
		}),
		one("no alternative names", false, func(t *x509.Certificate) { t.DNSNames = nil }),
		one("no names at all", false, func(t *x509.Certificate) { t.DNSNames, t.Subject = nil, pkix.Name{} }),
		one("a wildcard name", false, func(t *x509.Certificate) { t.DNSNames = []string{"*.example"} }),
		one("a name with an underscore", false,
			func(t *x509.Certificate) { t.DNSNames = []string{"a_b.example", Name} }),
		one("for clients only", false, func(t *x509.Certificate) {
			t.ExtKeyUsage = []x509.ExtKeyUsage{
				x509.ExtKeyUsageClientAuth}
		}),
		one("not for signatures", false, func(t *x509.Certificate) { t.KeyUsage = x509.KeyUsageKeyEncipherment }),
		one("an unknown critical extension", false, func(t *x509.Certificate) {
			t.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}),
		one("a name above ASCII", true, func(t *x509.Certificate) {
			t.DNSNames, t.ExtraExtensions = nil,
				[]pkix.Extension{extension(append([]byte{0x30, 19}, append(names[2:len(names):len(names)], 0x82, 4, 'a',
					0xc3, 0xa4, 'b')...))}
		}),
		one("alternative names twice", true, func(t *x509.Certificate) {
			t.DNSNames, t.ExtraExtensions = nil, []pkix.Extension{extension(names), extension(names)}
		}),
		one("an address of five bytes", true, func(t *x509.Certificate) {
			t.DNSNames, t.ExtraExtensions = nil,
				[]pkix.Extension{extension(append([]byte{0x30, 20, 0x87, 5, 1, 2, 3, 4, 5}, names[2:]...))}
		}),
	}
}

// hostile are sizes that a tenant may choose.
func (m *maker) hostile() []Case {
	p := m.issue(m.ec(elliptic.P256()), nil, nil)
	many := make([]*pair, 33)
	for i := range many {
		many[i] = p
	}
	large := m.issue(m.ec(elliptic.P256()), nil, func(t *x509.Certificate) {
		t.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Value: make([]byte, 60<<10)}}
	})
	return []Case{
		{Name: "33 certificates", Chain: crt(many...), Key: m.pkcs8(p.key), Refused: "more than 32 certificates"},
		{Name: "a certificate of 60 KiB", Chain: crt(large), Key: m.pkcs8(large.key)},
		{Name: "120 KiB of certificates", Chain: crt(large, large), Key: m.pkcs8(large.key), Refused: "more than"},
		{Name: "a key of 9,000 bytes", Chain: crt(p), Key: block("PRIVATE KEY", make([]byte, 9000)),
			Refused: "more than"},
	}
}

// fromFiles are those that OpenSSL created (testdata/make.sh).
func fromFiles(dir string) (list []Case, err error) {
	for _, x := range []Case{
		{Name: "RSA 512", Key: []byte("rsa512"), Refused: "512 bits"},
		{Name: "RSA 1024", Key: []byte("rsa1024")},
		{Name: "RSA 4096", Key: []byte("rsa4096")},
		{Name: "RSA 8200", Key: []byte("rsa8200"), Refused: "8200 bits"},
		{Name: "signed with SHA-1", Key: []byte("sha1")},
		{Name: "signed with MD5", Key: []byte("md5")},
		{Name: "a negative serial number", Key: []byte("negative")},
		{Name: "the serial number 0", Key: []byte("zero")},
		{Name: "a serial number of 29 bytes", Key: []byte("serial")},
		{Name: "EC PARAMETERS before the key", Key: []byte("parameters")},
		{Name: "a curve by its parameters", Key: []byte("explicit"), Refused: "private key"},
		{Name: "ECDSA P-224", Key: []byte("p224"), Refused: "P-224"},
		{Name: "ECDSA secp256k1", Key: []byte("secp256k1"), Refused: "curve"},
		{Name: "ECDSA brainpoolP256r1", Key: []byte("brainpool"), Refused: "curve"},
		{Name: "Ed448", Key: []byte("ed448"), Refused: "private key"},
		{Name: "RSA-PSS", Key: []byte("rsapss"), Refused: "private key"},
		{Name: "DSA", Key: []byte("dsa"), Refused: "private key"},
		{Name: "an encrypted key, PKCS #8", Key: []byte("encrypted"), Refused: "encrypted"},
		{Name: "an encrypted key, PKCS #1", Key: []byte("old-encrypted"), Refused: "encrypted"},
		{Name: "TRUSTED CERTIFICATE", Key: []byte("trusted")},
		{Name: "version 1", Key: []byte("v1")},
		{Name: "Bag Attributes of PKCS #12", Key: []byte("bag")},
		{Name: "PKCS7", Key: []byte("pkcs7"), Refused: "no block CERTIFICATE, but PKCS7"},
	} {
		file := filepath.Join(dir, string(x.Key))
		var e1, e2 error
		x.Chain, e1 = os.ReadFile(file + ".crt")
		x.Key, e2 = os.ReadFile(file + ".key")
		err = errors.Join(err, e1, e2)
		list = append(list, x)
	}
	return list, err
}
