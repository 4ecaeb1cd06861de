package control

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/lab/fabric"
)

func testConfig(t *testing.T, dual bool) Config {
	t.Helper()
	plan, err := fabric.NewPlan(3, dual)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Plan: plan, Dual: dual, Kube: "/x/kube", PKI: t.TempDir(), State: t.TempDir()}
}

func TestServingCertificateCoversEveryWayToTheServer(t *testing.T) {
	for dual, addresses := range map[bool][]string{
		false: {"127.0.0.1", "10.96.0.1", "172.30.0.2"},
		true:  {"127.0.0.1", "10.96.0.1", "172.30.0.2", "fd00:10:96::1", "fd00:30::2"},
	} {
		c := testConfig(t, dual)
		if _, err := c.WriteKeys(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(c.PKI, "apiserver.crt"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(data)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range append(addresses, "kubernetes.default.svc", "kubernetes.default.svc.cluster.local") {
			if err := cert.VerifyHostname(name); err != nil {
				t.Errorf("dual %t: %v", dual, err)
			}
		}
	}
}

// Every file that a flag names is there when the program starts.
func TestFlagsNameFilesThatAreWritten(t *testing.T) {
	c := testConfig(t, true)
	if _, err := c.WriteKeys(); err != nil {
		t.Fatal(err)
	}
	for _, service := range c.Services() {
		for _, arg := range service.Args {
			_, value, _ := strings.Cut(arg, "=")
			made := strings.Contains(arg, "data-dir") || strings.Contains(arg, "plugin-dir")
			if !strings.HasPrefix(value, "/") || made {
				continue
			}
			if _, err := os.Stat(value); err != nil {
				t.Errorf("%s %s: %v", service.Name, arg, err)
			}
		}
	}
}

func TestRangesFollowTheFamilies(t *testing.T) {
	for dual, want := range map[bool]string{
		false: "--service-cluster-ip-range=10.96.0.0/16",
		true:  "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
	} {
		for _, service := range testConfig(t, dual).Services()[1:3] {
			if !slices.Contains(service.Args, want) {
				t.Errorf("dual %t: %s has no %s", dual, service.Name, want)
			}
		}
	}
}
