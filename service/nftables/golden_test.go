package nftables

import (
	"flag"
	"os"
	"os/exec"
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
	nft, err := exec.LookPath("nft")
	if err != nil || os.Geteuid() != 0 {
		t.Log("nft was not asked: it is not installed, or this is not root")
		return
	}
	file := filepath.Join(t.TempDir(), "x.nft")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	testnet.New(t, "nft").Run(nft, "-c", "-f", file)
}
