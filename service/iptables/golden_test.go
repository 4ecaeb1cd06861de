package iptables

import (
	"flag"
	"strings"
	"testing"

	"wayleave.dev/internal/golden"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/iptables"
)

var _ = flag.Bool("update", false, "write the golden files anew")

// Every file of testdata holds YAML, and what becomes of it on node1: problems, plan and
// the text of iptables-restore; both flavours take it, and save it as it was written.
func TestGolden(t *testing.T) {
	golden.Run(t, "iptables", Text, func(t *testing.T, text []byte) {
		for _, flavour := range []iptables.Flavour{iptables.NFT, iptables.Legacy} {
			ns := testnet.New(t, "node")
			k, err := iptables.NewKernel(ns.FD(), flavour)
			if err != nil {
				t.Skip(err)
			}
			v4, v6, ok := strings.Cut(string(text), "# ip6tables-restore\n")
			if !ok {
				t.Fatal("no part for IPv6")
			}
			for f, part := range map[iptables.Family]string{iptables.IPv4: v4, iptables.IPv6: v6} {
				if err := k.Restore(t.Context(), f, []byte(part)); err != nil {
					t.Fatal(err)
				}
				for _, table := range []string{"nat", "filter"} {
					have, err := k.Read(t.Context(), f, table)
					if err != nil {
						t.Fatal(err)
					}
					saved(t, part, table, have)
				}
			}
		}
	})
}

// saved compares what was written of a table with what the kernel says.
func saved(t *testing.T, text, table string, have iptables.Table) {
	t.Helper()
	_, part, _ := strings.Cut(text, "*"+table+"\n")
	part, _, _ = strings.Cut(part, "COMMIT\n")
	wrote := iptables.Parse([]byte(part))
	for chain, rules := range wrote {
		if got := strings.Join(have[chain], "\n"); got != strings.Join(rules, "\n") {
			t.Errorf("%s was written as\n%s\nand is saved as\n%s", chain, strings.Join(rules, "\n"), got)
		}
	}
}
