package networkpolicy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// rangeOf is the addresses of a prefix.
func rangeOf(p netip.Prefix) model.Range {
	p = p.Masked()
	to := p.Addr().AsSlice()
	for i := p.Bits(); i < len(to)*8; i++ {
		to[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(to)
	return model.Range{From: p.Addr(), To: last}
}

// everywhere is all addresses of both families.
func everywhere() []model.Range {
	return []model.Range{rangeOf(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
		rangeOf(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
}

// subtract is the addresses of a block without the exceptions, which may overlap and
// lie outside.
func subtract(block netip.Prefix, except []netip.Prefix) (out []model.Range) {
	rest := rangeOf(block)
	except = slices.Clone(except)
	slices.SortFunc(except, func(a, b netip.Prefix) int { return a.Masked().Addr().Compare(b.Masked().Addr()) })
	for _, e := range except {
		if !e.Overlaps(block) {
			continue
		}
		hole := rangeOf(e)
		if rest.From.Less(hole.From) {
			out = append(out, model.Range{From: rest.From, To: hole.From.Prev()})
		}
		if !hole.To.Less(rest.To) {
			return out
		}
		if next := hole.To.Next(); rest.From.Less(next) {
			rest.From = next
		}
	}
	return append(out, rest)
}

// overlay makes blocks which may overlap disjoint and sorted: where several lie, their
// ports count together.
func overlay(list []Block) []Block {
	var v4, v6 []Block
	for _, b := range list {
		switch {
		case b.Ports.Empty():
		case b.Range.From.Is4():
			v4 = append(v4, b)
		default:
			v6 = append(v6, b)
		}
	}
	return append(overlayFamily(v4), overlayFamily(v6)...)
}

// edge is where the n-th kind of ports begins (+1) or ends (−1).
type edge struct {
	at   netip.Addr
	kind int
	step int
}

// overlayFamily sweeps from the lowest address to the highest, and keeps count of the
// blocks that it is in. Blocks with the same ports are of one kind, so that many of
// them cost no more than few.
func overlayFamily(list []Block) (out []Block) {
	edges, kinds := edgesOf(list)
	active, unions, budget := make([]int, len(kinds)), map[string]Ports{}, maxOverlaid
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			active[edges[i].kind] += edges[i].step
		}
		ports, ok := activeUnion(active, kinds, unions, &budget)
		if !ok {
			return out // what lies above allows nothing
		}
		if ports.Empty() {
			continue
		}
		to := rangeOf(netip.PrefixFrom(at, 0)).To // blocks that reach the last address have no second edge
		if i < len(edges) {
			to = edges[i].at.Prev()
		}
		if n := len(out) - 1; n >= 0 && out[n].Range.To.Next() == at && out[n].Ports.Equal(ports) {
			out[n].Range.To = to
			continue
		}
		out = append(out, Block{model.Range{From: at, To: to}, ports})
	}
	return out
}

func edgesOf(list []Block) (edges []edge, kinds []Ports) {
	for _, b := range list {
		kind := slices.IndexFunc(kinds, b.Ports.Equal)
		if kind < 0 && len(kinds) == maxPortSets {
			continue // it allows nothing
		}
		if kind < 0 {
			kind, kinds = len(kinds), append(kinds, b.Ports)
		}
		edges = append(edges, edge{b.Range.From, kind, 1})
		if next := b.Range.To.Next(); next.IsValid() {
			edges = append(edges, edge{next, kind, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.Compare(b.at) })
	return edges, kinds
}

// Bounds of the blocks of a profile: different sets of ports that they have, and ranges of ports of all combinations of
// them that some address is in. Both are elements in the kernel, and the author of a policy chooses them.
const (
	maxPortSets = 256
	maxOverlaid = 1 << 18
)

// activeUnion is the ports of all kinds that are active; known ones are remembered. It returns false if the budget of
// ranges is used up.
func activeUnion(active []int, kinds []Ports, known map[string]Ports, budget *int) (Ports, bool) {
	var key []byte
	for k, n := range active {
		if n > 0 {
			key = binary.AppendUvarint(key, uint64(k))
		}
	}
	if p, ok := known[string(key)]; ok {
		return p, true
	}
	var all []Ports
	for k, n := range active {
		if n > 0 {
			all = append(all, kinds[k])
			*budget -= 1 + len(kinds[k].Ranges)
		}
	}
	if *budget < 0 {
		return Ports{}, false
	}
	p := unionOf(all)
	known[string(key)] = p
	return p, true
}

// portsAt is what an address may by blocks that are disjoint and sorted.
func portsAt(blocks []Block, a netip.Addr) Ports {
	i, found := slices.BinarySearchFunc(blocks, a, func(b Block, a netip.Addr) int { return b.Range.From.Compare(a) })
	if !found {
		i--
	}
	if i < 0 || !blocks[i].Range.Contains(a) {
		return Ports{}
	}
	return blocks[i].Ports
}
