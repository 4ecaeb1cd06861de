package fastpath

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// Ways of a flow, as in fastpath.c.
const (
	wayPeer      = 1
	wayNeighbour = 2
)

// Further counters, as in fastpath.c.
const (
	countBegun   = 3
	countDropped = 4
)

// pod is struct pod of fastpath.c.
type pod struct {
	Link, MTU uint32
	MACs      [12]byte
}

// content is what is in the maps, and the links that have the program.
type content struct {
	pods    map[[16]byte]pod
	uplinks map[uint32]uint32
	links   map[int]bool
}

// names returns the links of the namespace by index.
func names() (map[int]string, error) {
	list, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	out := map[int]string{}
	for _, l := range list {
		out[l.Attrs().Index] = l.Attrs().Name
	}
	return out, nil
}

func indexes() (out []int, err error) {
	all, err := names()
	for at := range all {
		out = append(out, at)
	}
	return out, err
}

// read looks up in the kernel what belongs in the maps.
func read(s State) (want content, r Report, err error) {
	want = content{map[[16]byte]pod{}, map[uint32]uint32{}, map[int]bool{}}
	list, err := netlink.LinkList()
	if err != nil {
		return want, r, fmt.Errorf("links: %w", err)
	}
	links := map[string]netlink.Link{}
	for _, l := range list {
		links[l.Attrs().Name] = l
	}
	shaped, err := shapedLinks()
	if err != nil {
		return want, r, err
	}
	macs, err := neighbours()
	if err != nil {
		return want, r, err
	}
	for _, p := range s.Pods {
		l, ok := links[p.Link]
		if !ok || l.Type() != "veth" {
			continue
		}
		at := l.Attrs().Index
		if shaped[at] {
			r.Shaped = append(r.Shaped, p.Link)
			continue
		}
		want.links[at] = true
		r.Pods++
		for _, a := range p.Addrs {
			mac, ok := macs[neighbour{at, a}]
			if !ok {
				continue
			}
			entry := pod{Link: uint32(at), MTU: uint32(l.Attrs().MTU)}
			copy(entry.MACs[:6], mac)
			copy(entry.MACs[6:], l.Attrs().HardwareAddr)
			want.pods[a.As16()] = entry
		}
	}
	for _, name := range s.Uplinks {
		if l, ok := links[name]; ok && len(l.Attrs().HardwareAddr) == 6 {
			at := l.Attrs().Index
			want.links[at], want.uplinks[uint32(at)] = true, 1
			r.Uplinks++
		}
	}
	return want, r, nil
}

// shapedLinks are links whose queueing discipline is not the default of links without a queue. A packet that is
// redirected to a pod passes it by.
func shapedLinks() (map[int]bool, error) {
	list, err := netlink.QdiscList(nil)
	if err != nil {
		return nil, fmt.Errorf("queueing disciplines: %w", err)
	}
	out := map[int]bool{}
	for _, q := range list {
		if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && q.Type() != "noqueue" {
			out[a.LinkIndex] = true
		}
	}
	return out, nil
}

type neighbour struct {
	link int
	addr netip.Addr
}

// neighbours are the permanent neighbour entries.
func neighbours() (map[neighbour]net.HardwareAddr, error) {
	list, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	out := map[neighbour]net.HardwareAddr{}
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
			out[neighbour{n.LinkIndex, a.Unmap()}] = n.HardwareAddr
		}
	}
	return out, nil
}

// write brings the maps to what is wanted, and reports whether that changed anything.
func (k *Kernel) write(want content) (changed bool, err error) {
	if err := writeTimeouts(k.loaded.Maps["timeouts"]); err != nil {
		return false, err
	}
	changed = !maps.Equal(k.have.pods, want.pods) || !maps.Equal(k.have.uplinks, want.uplinks)
	if err := errors.Join(update(k.loaded.Maps["pods"], k.have.pods, want.pods),
		update(k.loaded.Maps["uplinks"], k.have.uplinks, want.uplinks)); err != nil {
		return changed, err
	}
	k.have = want
	return changed, nil
}

// update deletes what is not wanted, then sets what differs.
func update[K, V comparable](m *ebpf.Map, have, want map[K]V) error {
	for key := range have {
		if _, ok := want[key]; !ok {
			if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
	}
	for key, v := range want {
		if old, ok := have[key]; ok && old == v {
			continue
		}
		if err := m.Put(key, v); err != nil {
			return err
		}
	}
	return nil
}

// timeouts are the names of the timeouts, in the order of fastpath.c.
var timeouts = [...]string{"nf_conntrack_tcp_timeout_established", "nf_conntrack_udp_timeout_stream",
	"nf_conntrack_tcp_timeout_syn_sent", "nf_conntrack_tcp_timeout_syn_recv", "nf_conntrack_tcp_timeout_close"}

// sysctls are those of connection tracking in the network namespace of the thread.
const sysctls = "/proc/sys/net/netfilter/"

// writeTimeouts passes the timeouts of the namespace to the program. While connection tracking is not loaded there are
// none, and no connections.
func writeTimeouts(m *ebpf.Map) error {
	for i, name := range timeouts {
		raw, err := os.ReadFile(sysctls + name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		seconds, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 32)
		if err != nil {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
		if err := m.Put(uint32(i), uint32(min(seconds*1000, 1<<31))); err != nil {
			return err
		}
	}
	return nil
}
