package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func read(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestIssuedCertificateProvesWhatWasAskedFor(t *testing.T) {
	dir := t.TempDir()
	ca, err := NewAuthority(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	err = ca.Issue(Request{Name: "a", CommonName: "system:node:a", Organizations: []string{"system:nodes"},
		DNS: []string{"a.example"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1"),
			netip.MustParseAddr("fd00::1")}})
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := read(t, filepath.Join(dir, "a.crt")), x509.NewCertPool()
	roots.AddCert(read(t, filepath.Join(dir, "ca.crt")))
	for _, name := range []string{"a.example", "10.96.0.1", "fd00::1"} {
		if _, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{DNSName: "10.96.0.2", Roots: roots}); err == nil {
		t.Error("proves an address that was not asked for")
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("as a client: %v", err)
	}
	if cert.Subject.CommonName != "system:node:a" || strings.Join(cert.Subject.Organization, ",") != "system:nodes" {
		t.Errorf("subject %s", cert.Subject)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "a.crt"), filepath.Join(dir, "a.key")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a.key", "ca.key"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestKubeconfigIsPrivateAndNamesTheServer(t *testing.T) {
	dir := t.TempDir()
	ca, err := NewAuthority(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "conf")
	if err := ca.Kubeconfig(file, "https://172.30.0.2:6443", "a"); err == nil ||
		!strings.Contains(err.Error(), "a.crt") {
		t.Errorf("without a certificate: %v", err)
	}
	if err := ca.Issue(Request{Name: "a", CommonName: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := ca.Kubeconfig(file, "https://172.30.0.2:6443", "a"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), "server: https://172.30.0.2:6443\n") ||
		strings.Contains(string(text), "%!") {
		t.Errorf("got %v\n%s", err, text)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}
