package podnetwork

import (
	"net/netip"

	"wayleave.dev/kernel/nft"
)

// TableName is the name of our tables, one per family.
const TableName = "wayleave-podnetwork"

// table gives what pods send out of the cluster the node's address: from a pod of
// this node, to no pod and to no node. Between pods and nodes nothing is translated,
// as the Kubernetes network model asks.
func table(f nft.Family) nft.Table {
	return nft.Table{
		Family: f, Name: TableName,
		Sets: []nft.Set{
			{Name: "own-pod-cidrs", Key: []nft.Type{nft.Addr}, Interval: true},
			{Name: "pod-cidrs", Key: []nft.Type{nft.Addr}, Interval: true},
			{Name: "node-ips", Key: []nft.Type{nft.Addr}},
		},
		Chains: []nft.Chain{{Name: "masquerade", Hook: &nft.Hook{Type: "nat", Hook: "postrouting", Priority: 100}, Rules: []nft.Rule{{
			nft.In{Fields: []nft.Field{nft.Saddr}, Set: "own-pod-cidrs"},
			nft.In{Fields: []nft.Field{nft.Daddr}, Set: "pod-cidrs", Not: true},
			nft.In{Fields: []nft.Field{nft.Daddr}, Set: "node-ips", Not: true},
			nft.Masquerade(),
		}}}},
	}
}

// members are the elements of the sets of a family.
func members(f nft.Family, own, all []netip.Prefix, nodes []netip.Addr) map[string][]nft.Element {
	out := map[string][]nft.Element{}
	for _, p := range own {
		if family(p.Addr()) == f {
			out["own-pod-cidrs"] = append(out["own-pod-cidrs"], nft.Range(p))
		}
	}
	for _, p := range nft.Disjoint(all) {
		if family(p.Addr()) == f {
			out["pod-cidrs"] = append(out["pod-cidrs"], nft.Range(p))
		}
	}
	for _, a := range nodes {
		if family(a) == f {
			out["node-ips"] = append(out["node-ips"], nft.Element{Key: nft.Pack(a)})
		}
	}
	return out
}

func family(a netip.Addr) nft.Family {
	if a.Is6() {
		return nft.IPv6
	}
	return nft.IPv4
}
