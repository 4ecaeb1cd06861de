// Package nft is nftables: a form of tables, sets, chains and rules that prints
// as nft text and is applied by netlink, in one atomic transaction.
//
// Invariants:
//   - A Batch takes effect whole or not at all; packets see the old or the new.
//   - Only tables that a caller names are read or changed.
//   - Rendering is pure: equal values print to equal text.
package nft

// Family is an address family of a table.
type Family uint8

// The two families, by the kernel's numbers (NFPROTO_IPV4, NFPROTO_IPV6).
const (
	IPv4 Family = 2
	IPv6 Family = 10
)

// Families lists both.
func Families() []Family { return []Family{IPv4, IPv6} }

// String is the word for it in nft text.
func (f Family) String() string {
	if f == IPv6 {
		return "ip6"
	}
	return "ip"
}

// addrLen is the length of an address in bytes.
func (f Family) addrLen() int {
	if f == IPv6 {
		return 16
	}
	return 4
}
