package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// member is a certificate of a random world, with its key and its issuer.
type member struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
	by  *member
}

type realm struct {
	t       *testing.T
	r       *mathrand.Rand
	serial  int64
	members []*member
}

func (w *realm) issue(by *member, authority bool) *member {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	w.serial++
	c := &x509.Certificate{SerialNumber: big.NewInt(w.serial),
		Subject: pkix.Name{CommonName: fmt.Sprint("m", w.serial)}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: authority}
	if authority {
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	} else {
		switch w.r.IntN(6) {
		case 0:
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		case 1:
			c.KeyUsage = x509.KeyUsageKeyEncipherment
		case 2:
			c.KeyUsage = x509.KeyUsageDigitalSignature
		case 3, 4:
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}
	}
	if w.r.IntN(10) == 0 {
		c.NotAfter = time.Now().Add(-time.Minute)
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.Certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		w.t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		w.t.Fatal(err)
	}
	m := &member{c, key, by}
	w.members = append(w.members, m)
	return m
}

func (w *realm) list(by *member) []byte {
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour),
		NextUpdate: time.Now().Add(time.Hour)}
	if w.r.IntN(8) == 0 {
		l.NextUpdate = time.Now().Add(-time.Minute)
	}
	for _, m := range w.members {
		if m.by == by && w.r.IntN(4) == 0 {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: m.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, by.Certificate, by.key)
	if err != nil {
		w.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// What is verified is what OpenSSL, and so nginx, verifies: over random authorities, chains, uses,
// revocation lists and depths.
func TestVerifyAsOpenSSL(t *testing.T) {
	testnet.Need(t, "openssl")
	dir, asked, good := t.TempDir(), 0, 0
	for seed := range uint64(40) {
		w := &realm{t: t, r: mathrand.New(mathrand.NewPCG(15, seed))}
		authorities := []*member{w.issue(nil, true), w.issue(nil, true)}
		for range 1 + w.r.IntN(3) {
			authorities = append(authorities, w.issue(authorities[w.r.IntN(len(authorities))], true))
		}
		var leaves []*member
		for range 3 {
			leaves = append(leaves, w.issue(authorities[w.r.IntN(len(authorities))], false))
		}
		var ca, crl []byte
		for i, a := range authorities {
			if i == 0 || w.r.IntN(3) == 0 {
				ca = append(ca, pemOf(a.Certificate)...)
			}
			if w.r.IntN(4) > 0 {
				crl = append(crl, w.list(a)...)
			}
		}
		if w.r.IntN(2) == 0 {
			crl = nil
		}
		set, err := Parse(ca, crl)
		if err != nil {
			t.Fatal(err)
		}
		for _, leaf := range leaves {
			for depth := range 3 {
				asked++
				chain := []*x509.Certificate{leaf.Certificate}
				for m := leaf.by; m.by != nil; m = m.by {
					chain = append(chain, m.Certificate)
				}
				here := set.Verify(chain, Options{Depth: depth, Usage: x509.ExtKeyUsageClientAuth, Now: time.Now()})
				there := judge(t, dir, ca, crl, chain, depth)
				if (here == nil) != (there == "") {
					t.Errorf("seed %d, a chain of %d, depth %d: here %v, there %s", seed, len(chain),
						depth, here, there)
				}
				if here == nil {
					good++
				}
			}
		}
	}
	if good < asked/10 || good > asked*9/10 {
		t.Errorf("%d of %d are good: the worlds say little", good, asked)
	}
}

// judge is what openssl verify says; empty for good.
func judge(t *testing.T, dir string, ca, crl []byte, chain []*x509.Certificate, depth int) string {
	t.Helper()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{"verify", "-no-CApath", "-no-CAstore", "-purpose", "sslclient", "-verify_depth",
		strconv.Itoa(depth), "-CAfile", file("ca", ca)}
	if crl != nil {
		args = append(args, "-crl_check_all", "-CRLfile", file("crl", crl))
	}
	var between []byte
	for _, c := range chain[1:] {
		between = append(between, pemOf(c)...)
	}
	if between != nil {
		args = append(args, "-untrusted", file("between", between))
	}
	out, err := exec.CommandContext(t.Context(), "openssl",
		append(args, file("leaf", pemOf(chain[0])))...).CombinedOutput()
	if err == nil {
		return ""
	}
	return string(out)
}
