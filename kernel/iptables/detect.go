package iptables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Found is the flavour that a host uses.
type Found struct {
	Flavour Flavour
	// Why says how the flavour was detected.
	Why string
	// Mixed says that others have rules in both flavours; packets pass both.
	Mixed bool
}

// Detect finds the flavour of a namespace: the one in which the kubelet left its hint
// (KEP-3178) or its canary, else the one with more rules of others, else nft. It makes no
// table.
func Detect(ctx context.Context, nsfd int) (Found, error) {
	rules, hints := map[Flavour]int{}, map[Flavour]string{}
	for _, flavour := range []Flavour{NFT, Legacy} {
		k, err := NewKernel(nsfd, flavour)
		if err != nil {
			return Found{}, err
		}
		for _, f := range Families() {
			for _, table := range []string{"mangle", "nat", "filter"} {
				t, err := k.Read(ctx, f, table)
				if err != nil {
					return Found{}, err
				}
				n, hint := weigh(t)
				rules[flavour] += n
				if hint != "" {
					hints[flavour] = hint
				}
			}
		}
	}
	out := Found{Flavour: NFT, Why: "no rules were there", Mixed: rules[NFT] > 0 && rules[Legacy] > 0}
	switch {
	case hints[NFT] != "":
		out.Why = "chain " + hints[NFT]
	case hints[Legacy] != "":
		out.Flavour, out.Why = Legacy, "chain "+hints[Legacy]
	case rules[Legacy] > rules[NFT]:
		out.Flavour, out.Why = Legacy, fmt.Sprintf("%d rules, and %d of iptables-nft", rules[Legacy], rules[NFT])
	case rules[NFT] > 0:
		out.Why = fmt.Sprintf("%d rules, and %d of iptables-legacy", rules[NFT], rules[Legacy])
	}
	return out, nil
}

// weigh counts the rules of a table that are neither a service proxy's nor the kubelet's,
// and finds the kubelet's hint.
func weigh(t Table) (rules int, hint string) {
	for chain, list := range t {
		if chain == "KUBE-IPTABLES-HINT" || chain == "KUBE-KUBELET-CANARY" {
			hint = chain
		}
		if strings.HasPrefix(chain, "KUBE-") || strings.HasPrefix(chain, "WAYLEAVE-") {
			continue
		}
		for _, r := range list {
			if !strings.Contains(r, "-j KUBE-") && !strings.Contains(r, "-j WAYLEAVE-") {
				rules++
			}
		}
	}
	return rules, hint
}

// Installed says whether the programs of iptables are here.
func Installed() bool {
	_, err := exec.LookPath("iptables-nft-restore")
	return !errors.Is(err, exec.ErrNotFound)
}
