package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/table"
)

// signedBy is a self-signed certificate for names, with its key.
func signedBy(t testing.TB, key crypto.Signer, names ...string) schema.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: names, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return schema.Certificate{Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Priv: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})}
}

// A host with two certificates serves clients of either kind: those that know only RSA, only ECDSA, and both, of TLS
// 1.2 and 1.3, of Go and of OpenSSL.
func TestTwoCertificatesOfAHost(t *testing.T) {
	f := newFront(t, speaker(t, "one"))
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const name = "a.test"
	f.certs.Set(map[string]schema.Certificate{"r": signedBy(t, r, name, "only-rsa.test", "x.wild.test"),
		"e": signedBy(t, e, name, "x.wild.test")})
	openssl := func(name string, args ...string) string {
		out, _ := exec.Command("openssl", append([]string{"s_client", "-connect", f.encrypted, "-servername", name},
			args...)...).CombinedOutput()
		switch s := string(out); {
		case strings.Contains(s, "Peer signature type: RSA"):
			return "RSA"
		case strings.Contains(s, "Peer signature type: ECDSA"):
			return "ECDSA"
		case strings.Contains(s, "handshake failure"):
			return "refused"
		default:
			return s
		}
	}
	client := func(name string, c *tls.Config) string {
		c.ServerName, c.InsecureSkipVerify = name, true
		conn, err := tls.Dial("tcp", f.encrypted, c)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].PublicKeyAlgorithm.String()
	}
	hosts := func(first, other string) {
		path := []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b"}}
		f.certs.SetTable(table.Make(nil, map[string]*schema.Host{
			name:            {Name: name, Paths: path, Certificate: first, OtherCertificate: other},
			"only-rsa.test": {Name: "only-rsa.test", Paths: path, Certificate: "r"},
			"*.wild.test":   {Name: "*.wild.test", Paths: path, Certificate: first, OtherCertificate: other}}))
	}
	rsaOnly := &tls.Config{MaxVersion: tls.VersionTLS12,
		CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}}
	for _, order := range [][2]string{{"r", "e"}, {"e", "r"}} {
		hosts(order[0], order[1])
		for _, tc := range []struct{ what, got, want string }{
			{"Go", client(name, &tls.Config{}), "ECDSA"},
			{"Go, TLS 1.2", client(name, &tls.Config{MaxVersion: tls.VersionTLS12}), "ECDSA"},
			{"Go, ciphers of RSA", client(name, rsaOnly), "RSA"},
			{"Go, wildcard", client("x.wild.test", &tls.Config{}), "ECDSA"},
			{"Go, wildcard, ciphers of RSA", client("x.wild.test", rsaOnly), "RSA"},
			{"Go, a host with one", client("only-rsa.test", &tls.Config{}), "RSA"},
			{"OpenSSL", openssl(name), "ECDSA"},
			{"OpenSSL, signatures of RSA", openssl(name, "-sigalgs", "RSA-PSS+SHA256"), "RSA"},
			{"OpenSSL, signatures of ECDSA", openssl(name, "-sigalgs", "ECDSA+SHA256"), "ECDSA"},
			{"OpenSSL, TLS 1.2", openssl(name, "-tls1_2"), "ECDSA"},
			{"OpenSSL, TLS 1.2, ciphers of RSA", openssl(name, "-tls1_2", "-cipher", "aRSA"), "RSA"},
			{"OpenSSL, TLS 1.2, signatures of RSA", openssl(name, "-tls1_2", "-sigalgs", "RSA+SHA256"), "RSA"},
			{"OpenSSL, one that fits nothing", openssl("only-rsa.test", "-tls1_2", "-cipher", "aECDSA"), "refused"},
		} {
			if tc.got != tc.want {
				t.Errorf("first %s: %s: %.300s, want %s", order[0], tc.what, tc.got, tc.want)
			}
		}
	}
	// A connection that may have either certificate serves another host only if both are for it.
	if f.certs.Covers(name, []byte("only-rsa.test")) || !f.certs.Covers(name, []byte("x.wild.test")) {
		t.Error("another host is served by a certificate that may not be for it")
	}
	f.certs.Delete([]string{"e"})
	for _, order := range [][2]string{{"r", "e"}, {"e", "r"}} {
		hosts(order[0], order[1])
		if got := client(name, &tls.Config{}); got != "RSA" {
			t.Errorf("without the other certificate: %s", got)
		}
	}
	f.certs.Delete([]string{"r"})
	if got := fmt.Sprint(client(name, &tls.Config{})); got != "ECDSA" { // the self-signed one
		t.Errorf("without both: %s", got)
	}
}
