package wireguard

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/model"
)

// Former remembers the networks of pods whose Node is gone, or has another network now. Such pods may still run, and
// what is sent to them and by them would take the default route, unencrypted. The zero value remembers nothing. It is
// for one goroutine.
type Former struct {
	own, peers map[netip.Prefix]time.Time // when a Node had them last
}

const (
	// formerFor is longer than pods run after their Node is gone: their kubelet or the cluster ends them.
	formerFor = time.Hour
	// maxFormer bounds what is remembered of other nodes: the latest stay.
	maxFormer = 1024
)

func overlaps(list []netip.Prefix, p netip.Prefix) bool { return slices.ContainsFunc(list, p.Overlaps) }

// Look reads the networks that nodes have now, and the addresses of this node's pods, some of which may be of a network
// that it had before. It is called whenever networks change.
func (f *Former) Look(snap model.Snapshot, self string, pods []netip.Addr, now time.Time) {
	if f.own == nil {
		f.own, f.peers = map[netip.Prefix]time.Time{}, map[netip.Prefix]time.Time{}
	}
	for n := range snap.Nodes() {
		for _, p := range n.PodCIDRs {
			if n.Name == self {
				f.own[p] = now
			} else {
				f.peers[p] = now
			}
		}
	}
	own := slices.Collect(maps.Keys(f.own))
	for _, a := range pods {
		if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(a) }) {
			f.own[netip.PrefixFrom(a, a.BitLen())] = now
		}
	}
	for _, m := range []map[netip.Prefix]time.Time{f.own, f.peers} {
		maps.DeleteFunc(m, func(_ netip.Prefix, at time.Time) bool { return now.Sub(at) > formerFor })
	}
	gone := slices.DeleteFunc(slices.Collect(maps.Keys(f.peers)),
		func(p netip.Prefix) bool { return f.peers[p].Equal(now) })
	slices.SortFunc(gone, func(a, b netip.Prefix) int { return f.peers[b].Compare(f.peers[a]) })
	for _, p := range gone[min(maxFormer, len(gone)):] {
		delete(f.peers, p)
	}
}

// add has the guard also enforce what is remembered. This node's own network is never taken for that of a peer: its
// pods would not reach each other.
func (f *Former) add(g *Guarded) {
	missing := func(m map[netip.Prefix]time.Time, unless func(netip.Prefix) bool) (out []netip.Prefix) {
		for p := range m {
			if !unless(p) {
				out = append(out, p)
			}
		}
		slices.SortFunc(out, netip.Prefix.Compare)
		return out
	}
	own := g.Own
	g.Own = slices.Concat(own, missing(f.own, func(p netip.Prefix) bool { return slices.Contains(own, p) }))
	gone := missing(f.peers, func(p netip.Prefix) bool { return slices.Contains(g.Peers, p) || overlaps(own, p) })
	g.Peers, g.NoKey = slices.Concat(g.Peers, gone), slices.Concat(g.NoKey, gone)
}
