// Package wireguard plans the encryption between nodes: keys and their rotation, peers, and by which device each node
// is reached.
//
// A node has two devices, each with a key of its own. Devices of the same number talk to each other. Time is divided
// into periods: in each, all nodes send by one device, and replace the key of the other one in the middle of the
// period, when nobody uses it. So a key is replaced without a packet lost, and without agreement between nodes, as long
// as their clocks differ by less than a quarter of the period. A key is kept while a node still sends by its device
// (Usage): the agent of that node may not run.
//
// Invariants:
//   - Packets are taken from both devices at any time.
//   - A node publishes the keys of a device before it expects packets by it.
package wireguard

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

// Devices is how many devices a node has.
const Devices = 2

// Device is the name of a device.
func Device(i int) string { return fmt.Sprintf("%s%d", wireguard.Prefix, i) }

// Published is what a node tells of itself: the public key and the UDP port of each device.
type Published struct {
	Keys  [Devices]wireguard.Key
	Ports [Devices]uint16
}

// IsZero says whether the node does not encrypt.
func (p Published) IsZero() bool { return p == Published{} }

// Current is the device by which nodes send at a time.
func Current(now time.Time, period time.Duration) int { return int(epoch(now, period) % Devices) }

func epoch(now time.Time, period time.Duration) int64 { return now.UnixNano() / int64(period) }

// Rotation is which key is due to be replaced.
type Rotation struct {
	// Period is how long all nodes send by one device.
	Period time.Duration
	done   int64
}

// Due returns the device whose key is to be replaced now, once in each period: in the second or third quarter.
func (r *Rotation) Due(now time.Time) (device int, ok bool) {
	e := epoch(now, r.Period)
	since := time.Duration(now.UnixNano() % int64(r.Period))
	if r.done == e || since < r.Period/4 || since >= r.Period*3/4 {
		return 0, false
	}
	return 1 - Current(now, r.Period), true
}

// Quiet is how long nobody must have sent by a device before its key is replaced.
func (r *Rotation) Quiet() time.Duration { return r.Period / 8 }

// Done says that the key that was due is replaced.
func (r *Rotation) Done(now time.Time) { r.done = epoch(now, r.Period) }

// Fresh is how old a handshake may be: then the session has ended (REJECT_AFTER_TIME of WireGuard).
const Fresh = 180 * time.Second

// Choose is the device by which a node is reached: the current one, or the other one while only that has a session. ok
// is false where neither has.
func Choose(handshakes [Devices]time.Time, now time.Time, period time.Duration) (device int, ok bool) {
	current := Current(now, period)
	for _, d := range []int{current, 1 - current} {
		if now.Sub(handshakes[d]) < Fresh {
			return d, true
		}
	}
	return current, false
}

// Peers are the other nodes that a device talks to.
type Peers struct {
	// Nodes are their names by public key.
	Nodes map[wireguard.Key]string
	List  []wireguard.Peer
	// Missing are nodes that have published no key, or none that is theirs alone, or have no address that this node
	// can send to, with the reason.
	Missing map[string]string
}

// MakePeers plans the peers of a device. Where two nodes publish the same key, the node that had it before keeps it:
// held are the nodes by key as they are in force. Without such a node, none gets it. nodes has
// nodes without pods be peers as well.
func MakePeers(snap model.Snapshot, self string, device int, published map[string]Published, own [Devices]wireguard.Key,
	held map[wireguard.Key]string, nodes bool) Peers {
	out := Peers{Nodes: map[wireguard.Key]string{}, Missing: map[string]string{}}
	me, ok := snap.Node(self)
	if !ok {
		return out
	}
	claims := map[wireguard.Key][]string{}
	for name, p := range published {
		if _, ok := snap.Node(name); ok && name != self {
			for _, key := range p.Keys {
				claims[key] = append(claims[key], name)
			}
		}
	}
	for n := range snap.Nodes() {
		if n.Name == self {
			continue
		}
		p, known := published[n.Name]
		key := p.Keys[device]
		to := routes.Endpoint(me, n)
		allowed := routes.CIDRs(snap, n)
		// Also without nodes: an answer of a pod by a port of its node has the node's address, and is encrypted.
		if nodes || len(allowed) > 0 {
			for _, a := range routes.Addrs(snap, n) {
				allowed = append(allowed, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		switch {
		case !known || key.IsZero() || p.Ports[device] == 0:
			out.Missing[n.Name] = "it has published no key"
		case !to.IsValid():
			out.Missing[n.Name] = "it has no InternalIP of a family that this node has"
		case slices.Contains(own[:], key):
			out.Missing[n.Name] = "it publishes the key of this node"
		case len(claims[key]) > 1 && held[key] != n.Name:
			out.Missing[n.Name] = "it publishes a key that another node has published as well"
		case len(allowed) > 0:
			out.Nodes[key] = n.Name
			out.List = append(out.List, wireguard.Peer{Public: key, Allowed: allowed,
				Endpoint: netip.AddrPortFrom(to, p.Ports[device])})
		}
	}
	return out
}
