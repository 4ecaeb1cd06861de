package podnetwork

import (
	"net/netip"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/podnetwork/routes"
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
		Chains: []nft.Chain{
			// VXLAN is taken from nodes only, and not tracked: there is nothing to
			// translate, and every packet inside is tracked anyway.
			{Name: "vxlan-in", Hook: &nft.Hook{Type: "filter", Hook: "prerouting", Priority: -300}, Rules: []nft.Rule{
				append(vxlan(), nft.In{Fields: []nft.Field{nft.Saddr}, Set: "node-ips", Not: true}, nft.Drop()),
				append(vxlan(), nft.Notrack())}},
			{Name: "vxlan-out", Hook: &nft.Hook{Type: "filter", Hook: "output", Priority: -300}, Rules: []nft.Rule{append(vxlan(), nft.Notrack())}},
			{Name: "masquerade", Hook: &nft.Hook{Type: "nat", Hook: "postrouting", Priority: 100}, Rules: []nft.Rule{{
				nft.In{Fields: []nft.Field{nft.Saddr}, Set: "own-pod-cidrs"},
				nft.In{Fields: []nft.Field{nft.Daddr}, Set: "pod-cidrs", Not: true},
				nft.In{Fields: []nft.Field{nft.Daddr}, Set: "node-ips", Not: true},
				nft.Masquerade(),
			}}}},
	}
}

// vxlan matches packets of our VXLAN, by port and VNI: others may use the port, too.
func vxlan() nft.Rule {
	return nft.Rule{nft.ProtoIs(17), nft.DportIs(routes.Port), nft.VNIIs(routes.VNI)}
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
