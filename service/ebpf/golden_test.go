package ebpf

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"wayleave.dev/internal/golden"
	"wayleave.dev/internal/testnet"
)

var _ = flag.Bool("update", false, "write the golden files anew")

// Every file of testdata holds YAML, and what becomes of it on node1: problems, plan, the frontends in the maps, those
// that are left to nftables with the reason, and its tables, which the real nft takes.
func TestGolden(t *testing.T) {
	golden.Run(t, "ebpf", Text, func(t *testing.T, text []byte) {
		if os.Geteuid() != 0 {
			t.Log("nft was not asked: this is not root")
			return
		}
		testnet.Need(t, "nft")
		file := filepath.Join(t.TempDir(), "x.nft")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		testnet.New(t, "nft").Run("nft", "-c", "-f", file)
	})
}
