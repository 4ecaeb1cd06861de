package demo

import (
	"strings"
	"testing"
)

// The checks run blocks of the page by their number.
func TestTheRecipeOfKubeadmHasItsBlocks(t *testing.T) {
	all, err := section("../../docs/install/README.md", "kubeadm")
	if err != nil {
		t.Fatal(err)
	}
	starts := []string{"ssh CONTROL kubeadm init ", "for n in CONTROL WORKER…; do scp ",
		"ssh CONTROL kubeadm upgrade plan ",
		"for n in CONTROL WORKER…; do ssh $n 'cp "}
	if len(all) != len(starts) {
		t.Fatalf("%d blocks: %q", len(all), all)
	}
	for i, want := range starts {
		if !strings.HasPrefix(all[i], want) {
			t.Errorf("block %d is %q, want %q", i, all[i], want)
		}
		if text := places.Replace(all[i]); strings.Contains(text, "CONTROL") || strings.Contains(text, "…") {
			t.Errorf("a place is left in %q", text)
		}
	}
}

func TestWhatARemovedNodeHas(t *testing.T) {
	for out, wrong := range map[string]bool{
		"nothing is left\ntable ip filter\n/etc/cni/net.d:\n\n/etc/kubernetes:\npki\n": false,
		"table ip wayleave-service\n": true,
		"10-wayleave.conflist\n":      true,
		"kubelet.conf\n":              true,
		"x\n" + strings.Repeat("0a", 32) + "\n/etc/cni/net.d:\n":      true,
		"the image " + strings.Repeat("0a", 32) + " is not running\n": false,
	} {
		if err := left(out); (err != nil) != wrong {
			t.Errorf("%q: %v", out, err)
		}
	}
}
