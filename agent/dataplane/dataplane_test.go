package dataplane

import (
	"testing"

	"wayleave.dev/config"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/podnetwork"
)

// Each data plane that the setting mode allows offers something to each feature, and what several share is left once.
func TestEachDataPlaneServesEachFeature(t *testing.T) {
	for _, mode := range []string{"auto", "nftables", "iptables", "ipvs", "ebpf"} {
		cfg, err := config.Parse([]byte("mode: " + mode))
		if err != nil {
			t.Fatal(err)
		}
		p, err := For(cfg)
		if err != nil {
			t.Fatalf("mode %s: %v", mode, err)
		}
		k := Kernel{NFT: nft.NewFake()}
		if p.Policies(k) == nil || p.DNS(k) == nil || p.PodNetwork(k)(podnetwork.RulesConfig{}) == nil {
			t.Errorf("mode %s does not serve every feature", mode)
		}
		if mode != "auto" && p.Name() != mode {
			t.Errorf("mode %s is the data plane %s", mode, p.Name())
		}
	}
	if _, err := For(config.Config{Mode: "xdp"}); err == nil {
		t.Error("a data plane that is not built is there")
	}
	if n := len(AllRules()); n != 1 {
		t.Errorf("rules of %d kinds may be left, want those of nftables once", n)
	}
}
