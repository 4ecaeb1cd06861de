package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

func selfSigned(t testing.TB, subject pkix.Name, raw []byte) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: subject, RawSubject: raw,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func TestSetsAreBounded(t *testing.T) {
	one := pemOf(selfSigned(t, pkix.Name{CommonName: "a"}, nil))
	for _, c := range []struct {
		ca, crl []byte
		want    string
	}{
		{nil, nil, "has no certificate"},
		{[]byte("x"), nil, "has no certificate"},
		{bytes.Repeat(one, MaxCertificates+1), nil, "has more than 256 certificates"},
		{bytes.Repeat([]byte("x"), MaxBytes+1), nil, "is longer than"},
		{[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), nil, "ca.crt: "},
		{one, []byte("x"), "ca.crl: has no list"},
		{one, one, "ca.crl: has no list"},
		{one, []byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), "ca.crl: "},
	} {
		if s, err := Parse(c.ca, c.crl); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v %v, want %q", c.ca, s, err, c.want)
		}
	}
	if _, err := Parse(one, nil); err != nil {
		t.Error(err)
	}
}

// A name is written as OpenSSL does, whose text nginx compares.
func TestNames(t *testing.T) {
	testnet.Need(t, "openssl")
	oid := func(n ...int) asn1.ObjectIdentifier { return n }
	for _, c := range []struct {
		name pkix.Name
		want string
	}{
		{pkix.Name{CommonName: "ann", Organization: []string{"Shop, Inc."}, Country: []string{"DE"}},
			`CN=ann,O=Shop\, Inc.,C=DE`},
		{pkix.Name{CommonName: "evil,CN=admin"}, `CN=evil\,CN=admin`},
		{pkix.Name{CommonName: "evil\nCN=admin"}, `CN=evil\0ACN=admin`},
		{pkix.Name{CommonName: `a+b"c\d<e>f;g`}, `CN=a\+b\"c\\d\<e\>f\;g`},
		{pkix.Name{CommonName: "#x"}, `CN=\#x`},
		{pkix.Name{CommonName: " x "}, `CN=\ x\ `},
		{pkix.Name{CommonName: "Jörg"}, `CN=J\C3\B6rg`},
		{pkix.Name{CommonName: "a=b/c"}, `CN=a=b/c`},
		{pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: oid(0, 9, 2342, 19200300, 100, 1, 25),
			Value: "example"}, {Type: oid(0, 9, 2342, 19200300, 100, 1, 1), Value: "ann"},
			{Type: oid(1, 2, 840, 113549, 1, 9, 1), Value: "ann@x.example"}, {Type: oid(2, 5, 4, 5), Value: "12"}}},
			`serialNumber=12,emailAddress=ann@x.example,UID=ann,DC=example`},
		{pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: oid(1, 2, 3, 4), Value: "x"}}}, `1.2.3.4=#130178`},
		{pkix.Name{}, ``},
	} {
		cert := selfSigned(t, c.name, nil)
		if got := Name(cert.RawSubject); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
		cmd := exec.CommandContext(t.Context(), "openssl", "x509", "-noout", "-subject", "-nameopt", "RFC2253")
		cmd.Stdin = bytes.NewReader(pemOf(cert))
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("openssl: %v", err)
			continue
		}
		if judge := strings.TrimSuffix(strings.TrimPrefix(string(out), "subject="), "\n"); judge != c.want {
			t.Errorf("openssl says %q, want %q", judge, c.want)
		}
	}
}

// Whatever a name holds, its text is one line of printable ASCII, and no value can begin another
// attribute.
func FuzzName(f *testing.F) {
	for _, s := range []string{"ann", "a,CN=b", "\x00\r\n", "#", " ", "é", `\`, "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		raw, err := asn1.Marshal(pkix.RDNSequence{{{Type: []int{2, 5, 4, 3}, Value: s}}})
		if err != nil {
			return
		}
		got := Name(raw)
		plain := strings.NewReplacer(`\\`, "", `\,`, "", `\+`, "").Replace(got)
		if strings.ContainsAny(plain, ",+") ||
			strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q: %q", s, got)
		}
	})
}
