package nft

import (
	"strings"
	"testing"

	"wayleave.dev/internal/testnet"
)

// The ruleset has each rule and element, also of foreign tables, and ends at its bound.
func TestTheRulesetHasEachRuleAndElement(t *testing.T) {
	testnet.Need(t, "nft")
	ns := testnet.New(t, "ruleset")
	ns.Run("nft", "add table inet foreign")
	ns.Run("nft", "add chain inet foreign input { type filter hook input priority 0; }")
	ns.Run("nft", "add rule inet foreign input tcp dport 4242 counter drop")
	ns.Run("nft", "add set inet foreign addrs { type ipv4_addr; }")
	ns.Run("nft", "add element inet foreign addrs { 192.0.2.1, 192.0.2.2 }")
	ns.Run("nft", "add map inet foreign doors { type inet_service : verdict; elements = { 80 : drop } }")
	k, err := NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	text, cut, err := k.Ruleset(t.Context(), 1<<20)
	if err != nil || cut {
		t.Fatalf("%v, cut %v", err, cut)
	}
	for _, want := range []string{"table family=1 foreign", "chain input: 1 rules, hook 1, priority 0",
		"Data:[16 146]", "Counter{",
		"set addrs", "    c0000201\n", "    c0000202\n", "set doors", "    0050 : "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for limit := 0; limit < len(text); limit += 37 {
		short, cut, err := k.Ruleset(t.Context(), limit)
		if err != nil || !cut || len(short) > limit || !strings.HasPrefix(text, short) {
			t.Fatalf("with %d bytes: %v, cut %v, %d bytes", limit, err, cut, len(short))
		}
	}
}
