package loadbalancer

import (
	"cmp"
	"net/netip"
	"slices"
)

// Standing is the state of a node's agent.
type Standing uint8

// The standings, worst first.
const (
	// Dead sends no heartbeats.
	Dead Standing = iota
	// Reluctant lives, but is starting, stopping or without a link: it owns an address only if no other node can.
	Reluctant
	// Willing lives and takes addresses.
	Willing
)

// Score is the weight of a node for an address (rendezvous hashing): the highest owns it. It depends only on the two,
// not on the platform or an order.
func Score(addr netip.Addr, node string) uint64 {
	// FNV-1a over 16 bytes of address and the name, then the finalizer of MurmurHash3: FNV alone gives similar
	// results for neighbouring inputs.
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

// Better reports whether a comes before b for the address. Ties go by name, so exactly one of two nodes is better.
func Better(addr netip.Addr, a, b string) bool { return compare(addr, a, b) < 0 }

func compare(addr netip.Addr, a, b string) int {
	return cmp.Or(cmp.Compare(Score(addr, b), Score(addr, a)), cmp.Compare(a, b))
}

// Order returns the nodes, the best for the address first.
func Order(addr netip.Addr, nodes []string) []string {
	sorted := slices.Clone(nodes)
	slices.SortFunc(sorted, func(a, b string) int { return compare(addr, a, b) })
	return sorted
}

// Owner returns the node that answers for the address: the best willing candidate, or if none is willing, the best
// one that lives. It is "" if none does.
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
