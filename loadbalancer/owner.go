// Package loadbalancer decides which node answers for the address of a Service of type
// LoadBalancer. It is pure: the same nodes give the same owner on every node, so
// agents need not talk to agree.
package loadbalancer

import (
	"cmp"
	"net/netip"
	"slices"
)

// Standing is what is known of a node's agent.
type Standing uint8

// The standings, worst first.
const (
	// Dead shows no life.
	Dead Standing = iota
	// Reluctant lives, but has just started, is about to end, or has no link: it owns an
	// address only when nobody else can.
	Reluctant
	// Willing lives and takes addresses.
	Willing
)

// Score is the weight of a node for an address (rendezvous hashing): the heaviest
// owns it. It depends on nothing but the two, on no platform and on no order.
func Score(addr netip.Addr, node string) uint64 {
	// FNV-1a over 16 bytes of address and the name, then the finalizer of
	// MurmurHash3: FNV alone leaves neighbouring inputs too much alike.
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, b := range addr.Unmap().As16() {
		h = (h ^ uint64(b)) * prime
	}
	for i := range len(node) {
		h = (h ^ uint64(node[i])) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Better says whether a comes before b for the address. Of equal scores the lesser
// name is the better one, so of two nodes always exactly one is.
func Better(addr netip.Addr, a, b string) bool { return compare(addr, a, b) < 0 }

func compare(addr netip.Addr, a, b string) int {
	return cmp.Or(cmp.Compare(Score(addr, b), Score(addr, a)), cmp.Compare(a, b))
}

// Order is the nodes, the best for the address first.
func Order(addr netip.Addr, nodes []string) []string {
	sorted := slices.Clone(nodes)
	slices.SortFunc(sorted, func(a, b string) int { return compare(addr, a, b) })
	return sorted
}

// Owner is the node that answers for the address: the best of the willing ones among
// eligible, and when none is willing, the best of those that live. It is "" when none does.
func Owner(addr netip.Addr, eligible []string, standing func(node string) Standing) string {
	best, rank := "", Dead
	for _, n := range eligible {
		switch s := standing(n); {
		case s == Dead || s < rank:
		case s > rank || Better(addr, n, best):
			best, rank = n, s
		}
	}
	return best
}
