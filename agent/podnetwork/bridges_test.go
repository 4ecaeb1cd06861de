package podnetwork

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A bridge of pods that shows its packets to no rule is named, with what is missing; one that does, and none, are not.
func TestABridgeThatHidesPacketsIsNamed(t *testing.T) {
	dir := t.TempDir()
	said := func(bridges ...string) string { return fmt.Sprint(blindBridges(dir, "n1", bridges)) }
	if got := said(); got != "[]" {
		t.Errorf("without a bridge of pods: %s", got)
	}
	for _, want := range []string{
		"Node n1: net.bridge.bridge-nf-call-iptables: it is not there (the module br_netfilter is not loaded)",
		"on the bridge cni0", "bridge-nf-call-ip6tables"} {
		if got := said("cni0"); !strings.Contains(got, want) {
			t.Errorf("without the module: %s, want %s", got, want)
		}
	}
	set := func(name, value string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "bridge"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "bridge", name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("bridge-nf-call-iptables", "0")
	set("bridge-nf-call-ip6tables", "1")
	if got := said("cni0"); !strings.Contains(got, "bridge-nf-call-iptables: it is 0") ||
		strings.Contains(got, "ip6tables") {
		t.Errorf("with 0: %s", got)
	}
	set("bridge-nf-call-iptables", "1")
	if got := said("cni0"); got != "[]" {
		t.Errorf("with 1: %s", got)
	}
}
