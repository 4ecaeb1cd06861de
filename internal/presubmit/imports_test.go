// Package presubmit holds the tests of the repository's rules: which package may import
// which, and that documents agree with the code.
package presubmit

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "wayleave.dev/"

// root is the top of the checkout: tests run in the folder of their package.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	return pkgs
}

// below says whether path is pkg or a package under it.
func below(path, pkg string) bool { return path == pkg || strings.HasPrefix(path, pkg+"/") }

func belowAny(path string, pkgs []string) bool {
	return slices.ContainsFunc(pkgs, func(p string) bool { return below(path, p) })
}

// rule says that only the packages in by may import what is below of.
type rule struct {
	of  string
	by  []string
	why string
}

func rules() []rule {
	return []rule{
		{"k8s.io/client-go", []string{"source/kubernetes", "writeback", "install"},
			"one place reads the API, one writes to it, and one installs"},
		{"k8s.io/api", []string{"source", "writeback", "deploy", "internal/fakeapi"}, "the model knows no API types"},
		{"k8s.io/apimachinery", []string{"source", "writeback", "deploy", "api", "install", "internal/fakeapi"},
			"the model knows no API types; api is such types"},
		{"github.com/google/nftables", []string{"kernel"}, "only kernel/ changes kernel state"},
		{"github.com/vishvananda/netlink", []string{"kernel", "podnetwork", "cmd/wayleave-cni", "internal/testnet"},
			"only kernel/ and podnetwork, which owns the pods' links, change kernel state"},
		{"github.com/mdlayher/netlink", []string{"kernel"}, "only kernel/ changes kernel state"},
		{"github.com/cilium/statedb", []string{"model"}, "features see snapshots, not the database"},
		{"os/exec", []string{"kernel", "internal"}, "only kernel/ runs programs"},
		{"testing", []string{"internal/testnet", "internal/golden", "internal/hostile", "internal/dnstest",
			"internal/wiretest", "service/conformance", "kernel/nft/program/programtest"},
			"tests stay out of the product"},
		{module + "internal/fakeapi", nil, "it is for tests"},
		{module + "internal/dnstest", nil, "it is for tests"},
		{module + "internal/wiretest", nil, "it is for tests"},
	}
}

func TestOnlyTheOwnersImport(t *testing.T) {
	for _, p := range packages(t) {
		self := strings.TrimPrefix(p.ImportPath, module)
		for _, r := range rules() {
			for _, i := range p.Imports {
				if below(i, r.of) && !belowAny(self, r.by) {
					t.Errorf("%s imports %s; only %s may: %s", self, i, strings.Join(r.by, ", "), r.why)
				}
			}
		}
	}
}

// Features meet in the model, never in each other.
func TestFeaturesDoNotImportEachOther(t *testing.T) {
	features := []string{"service", "podnetwork", "dns", "networkpolicy", "loadbalancer", "ingress", "gateway"}
	for _, p := range packages(t) {
		self := strings.TrimPrefix(p.ImportPath, module)
		for _, f := range features {
			if !below(self, f) {
				continue
			}
			for _, i := range p.Imports {
				i = strings.TrimPrefix(i, module)
				if belowAny(i, features) && !below(i, f) {
					t.Errorf("%s imports %s, another feature", self, i)
				}
				if belowAny(i, []string{"source", "writeback", "cmd"}) && !strings.HasPrefix(i, "source/manifest") {
					t.Errorf("%s imports %s: data flows from the sources to the features", self, i)
				}
			}
		}
	}
}

func TestTheModelImportsNothingOfOurs(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"model" {
			continue
		}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, module) {
				t.Errorf("model imports %s", i)
			}
		}
	}
}
