package presubmit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Package agent knows no feature; what runs a feature knows its own alone; and one package lists all of them. So a
// feature is added by a folder and a line.
func TestTheAgentKnowsNoFeature(t *testing.T) {
	features := []string{"service", "podnetwork", "dns", "networkpolicy", "loadbalancer", "ingress", "gateway", "proxy"}
	// Ingress is served by the proxy. A data plane is one for several features.
	// BGP announces what the load balancer gives.
	also := map[string][]string{"ingress": {"proxy"}, "dataplane": features, "bgp": {"loadbalancer/bgp"}}
	for _, p := range packages(t) {
		self, ok := strings.CutPrefix(p.ImportPath, module+"agent")
		if !ok || self == "/features" {
			continue
		}
		own, _, _ := strings.Cut(strings.TrimPrefix(self, "/"), "/")
		for _, i := range p.Imports {
			i = strings.TrimPrefix(i, module)
			if belowAny(i, features) && (own == "" || !below(i, own) && !belowAny(i, also[own])) {
				t.Errorf("agent%s imports %s: only agent/%s may", self, i, strings.SplitN(i, "/", 2)[0])
			}
			if below(i, "agent") && i != "agent" && i != "agent/dataplane" && i != "agent/report" && i != "agent"+self {
				t.Errorf("agent%s imports %s: features meet in package agent", self, i)
			}
		}
	}
}

// The program is commands: what they do is in packages.
func TestTheCommandIsSmall(t *testing.T) {
	small(t, filepath.Join("cmd", "wayleave"), 800)
	small(t, filepath.Join("cmd", "wayleave", "commands"), 1200)
	small(t, filepath.Join("cmd", "wayleave", "installcommands"), 400)
	small(t, filepath.Join("cmd", "wayleave", "clustercommands"), 800)
}

// small counts the lines of a folder without tests.
func small(t *testing.T, folder string, most int) {
	t.Helper()
	lines := 0
	files, err := filepath.Glob(filepath.Join(root(t), folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(raw), "\n")
	}
	if lines == 0 || lines >= most {
		t.Errorf("%s has %d lines, want fewer than %d: move what is no command to a package", folder, lines, most)
	}
}
