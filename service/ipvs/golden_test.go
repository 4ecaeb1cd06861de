package ipvs

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/internal/golden"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

var _ = flag.Bool("update", false, "write the golden files anew")

// Every file of testdata holds YAML, and what becomes of it on node1: problems, plan, the
// virtual servers as ipvsadm lists them, and the tables around them, which the real nft
// takes.
func TestGolden(t *testing.T) {
	render := func(plans map[model.Name]service.Plan, l service.NodeFacts) string { return Text(plans, l, "rr") }
	golden.Run(t, "ipvs", render, func(t *testing.T, text []byte) {
		if os.Geteuid() != 0 {
			t.Log("nft was not asked: this is not root")
			return
		}
		testnet.Need(t, "nft")
		_, tables, ok := strings.Cut(string(text), "table ip ")
		if !ok {
			t.Fatal("no tables")
		}
		file := filepath.Join(t.TempDir(), "x.nft")
		if err := os.WriteFile(file, []byte("table ip "+tables), 0o600); err != nil {
			t.Fatal(err)
		}
		testnet.New(t, "nft").Run("nft", "-c", "-f", file)
	})
}
