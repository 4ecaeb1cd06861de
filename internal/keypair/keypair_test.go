package keypair_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/keypair"
	"wayleave.dev/internal/keypair/keypairtest"
)

// cases are made once: RSA keys take time.
var cases = sync.OnceValues(func() ([]keypairtest.Case, error) { return keypairtest.Cases("testdata") })

// A pair is served in handshakes, or refused with a reason.
func TestPairs(t *testing.T) {
	list, err := cases()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		t.Run(x.Name, func(t *testing.T) {
			pair, err := keypair.Parse(x.Chain, x.Key)
			if x.Refused != "" {
				if err == nil || !strings.Contains(err.Error(), x.Refused) {
					t.Fatalf("%v, want %q", err, x.Refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := x509.ParseCertificate(pair.Certificate[0]); (err != nil) != x.Unread {
				t.Errorf("Go's reader: %v", err)
			}
			if err := pair.Leaf.VerifyHostname(keypairtest.Name); err != nil && x.Name != "no names at all" &&
				x.Name != "a CA as leaf" {
				t.Error(err)
			}
			if pair.Leaf.NotAfter.IsZero() || pair.Leaf.NotBefore.IsZero() {
				t.Error("no time of validity")
			}
			again, err := keypair.Parse(x.Chain, keypair.EncodeKey(x.Key))
			if err != nil || !bytes.Equal(again.Certificate[0], pair.Certificate[0]) {
				t.Errorf("the key alone: %v", err)
			}
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				shake(t, pair, version, x.Unread)
			}
		})
	}
}

// shake has a client that does not look at the certificate connect.
func shake(t *testing.T, pair *tls.Certificate, version uint16, unread bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		a, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer a.Close()
		_ = a.SetDeadline(time.Now().Add(20 * time.Second))
		s := tls.Server(a, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return pair, nil
		}})
		done <- s.Handshake()
	}()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_ = b.SetDeadline(time.Now().Add(20 * time.Second))
	c := tls.Client(b, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
	err = c.Handshake()
	if unread { // Go's client reads what its server need not
		if err == nil || !strings.Contains(err.Error(), "failed to parse certificate") {
			t.Errorf("version %x: %v", version, err)
		}
		return
	}
	if serr := <-done; err != nil || serr != nil {
		t.Errorf("version %x: the client says %v, the server %v", version, err, serr)
	}
}

// The leaf comes first, then its issuers; nothing is lost.
func TestOrderOfChains(t *testing.T) {
	list, err := cases()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"the leaf last":                {"odd.example", "middle", "root"},
		"the leaf between its issuers": {"odd.example", "middle", "root"},
		"leaf and issuers":             {"odd.example", "middle", "root"},
		"issuers in the wrong order":   {"odd.example", "root", "middle"},
		"the leaf twice":               {"odd.example", "odd.example", "middle"},
	} {
		for _, x := range list {
			if x.Name != name {
				continue
			}
			pair, err := keypair.Parse(x.Chain, x.Key)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, der := range pair.Certificate {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, c.Subject.CommonName)
			}
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
	}
}

// FuzzParse reads any Secret: it is served or refused, in bounded time.
func FuzzParse(f *testing.F) {
	list, err := cases()
	if err != nil {
		f.Fatal(err)
	}
	for _, x := range list {
		if len(x.Chain) < 8<<10 {
			f.Add(x.Chain, x.Key)
		}
	}
	f.Fuzz(func(t *testing.T, chain, key []byte) {
		pair, err := keypair.Parse(chain, key)
		if err == nil && (pair.Leaf == nil || pair.PrivateKey == nil || len(pair.Certificate) == 0 ||
			len(pair.Certificate) > keypair.MaxCertificates) {
			t.Fatalf("%+v", pair)
		}
	})
}
