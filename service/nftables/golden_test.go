package nftables

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"wayleave.dev/internal/golden"
	"wayleave.dev/internal/testnet"
)

var _ = flag.Bool("update", false, "write the golden files anew")

// Every file of testdata holds YAML, and what becomes of it on node1: problems,
// plan and nft text.
func TestGolden(t *testing.T) { golden.Run(t, "nft", Text, accepted) }

// accepted has the real nft check our text, where there is one.
func accepted(t *testing.T, text []byte) {
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
}
