package service

import (
	"strings"
	"testing"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel"
	kernelipvs "wayleave.dev/kernel/ipvs"
)

// A mode that the node cannot have is refused with what is missing and what to do, before
// anything is changed.
func TestAModeThatTheNodeCannotHaveIsRefused(t *testing.T) {
	lacks := kernel.Features{Release: "5.15.0", Missing: []string{"nft_masq", "nft_numgen"}}
	for _, tc := range []struct{ mode, want string }{
		{"auto", "kernel 5.15.0 lacks what mode nftables needs; try: modprobe -a nft_masq nft_numgen"},
		{"nftables", "kernel 5.15.0 lacks what mode nftables needs"},
		{"ipvs", "kernel 5.15.0 has no IPVS, and none could be loaded; on the node try: modprobe -a ip_vs ip_vs_lc"},
	} {
		cfg := config.Default()
		cfg.Mode, cfg.IPVS.Scheduler = tc.mode, "lc"
		err := possible(t.Context(), cfg, newPlanes(0, nil, nil, cfg, agent.Dirs{State: t.TempDir()}), lacks)
		if tc.mode == "ipvs" && kernelipvs.Available() == nil {
			if err != nil {
				t.Errorf("this kernel has IPVS, and mode ipvs is refused: %v", err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("mode %s: error is %v, want %s", tc.mode, err, tc.want)
		}
	}
}
