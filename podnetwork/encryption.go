package podnetwork

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
	plan "wayleave.dev/podnetwork/wireguard"
)

// encryptEvery is how often devices are compared with what is wanted, and handshakes are looked at.
const encryptEvery = time.Second

// encryption keeps the devices, keys and rules of WireGuard, and decides by which device each node is reached. Its
// methods are for one goroutine, but for those that say otherwise.
type encryption struct {
	Encryption
	n        *Network
	guard    *plan.Guard
	witness  *wireguard.Witness
	rotation plan.Rotation
	private  [plan.Devices]wireguard.Key
	// replaced is when this agent replaced a device's key: an older handshake is of no use.
	replaced [plan.Devices]time.Time
	usage    plan.Usage
	former   plan.Former
	// kept is since when a key is due that is not replaced, zero for not.
	kept time.Time
	// loosened are the numbers of the devices whose reverse paths are not checked.
	loosened [plan.Devices]int
	// held are nodes by the keys that are in force.
	held map[wireguard.Key]string
	// since is when the keys of a node became known, for nodes without a handshake.
	since map[string]time.Time
	// differs is since when this node's Lease has other keys than its devices, zero for not.
	differs time.Time
	// known are the keys of nodes as they were published last, gone is since when a node has withdrawn them.
	known map[string]plan.Published
	gone  map[string]time.Time
	// ready is closed once the first round has succeeded.
	ready chan struct{}
	state atomic.Pointer[EncryptionState]
}

// EncryptionState is what is known of encryption, for status and metrics.
type EncryptionState struct {
	// Kind is "kernel" or "user space".
	Kind string
	// Routes are the decisions.
	Routes routes.Encryption
	Peers  []EncryptedPeer
}

// EncryptedPeer is another node.
type EncryptedPeer struct {
	Node string `json:"node"`
	// Device is the one by which packets are sent, empty where none is.
	Device   string `json:"device,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	// Handshake is the last one of either device, zero for none.
	Handshake time.Time `json:"handshake"`
	Received  uint64    `json:"received"`
	Sent      uint64    `json:"sent"`
	// Note is what is unusual.
	Note string `json:"note,omitempty"`
}

func newEncryption(n *Network, conn nft.Conn) *encryption {
	e := &encryption{Encryption: n.Config.Encryption, n: n, witness: &wireguard.Witness{NSFD: n.NSFD},
		known: map[string]plan.Published{}, gone: map[string]time.Time{}, held: map[wireguard.Key]string{},
		since: map[string]time.Time{}, ready: make(chan struct{})}
	e.rotation.Period = e.Period
	e.guard = plan.NewGuard(conn, e.ports())
	return e
}

func (e *encryption) ports() (out [plan.Devices]uint16) {
	for i := range out {
		out[i] = e.Port + uint16(i)
	}
	return out
}

// routes are the decisions. Safe for concurrent use.
func (e *encryption) routes() routes.Encryption {
	if s := e.state.Load(); s != nil {
		return s.Routes
	}
	return routes.Encryption{Preferred: e.Preferred, Strict: e.Strict, Nodes: e.Nodes}
}

// run encrypts until ctx ends, or takes out what encryption left. The devices, their routes and the rules stay behind.
func (e *encryption) run(ctx context.Context) error {
	defer e.witness.Close()
	if !e.On() {
		return e.leave(ctx)
	}
	foreign, err := e.guard.Watch(ctx)
	if err != nil {
		return err
	}
	w, err := e.n.Store.Watch(model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	tick := time.NewTicker(encryptEvery)
	defer tick.Stop()
	force := true
	for ctx.Err() == nil {
		_, _, nodes := w.Poll()
		err := e.round(ctx, force)
		force = err != nil
		if ctx.Err() == nil {
			e.report("encryption", e.failure(err))
		}
		wait, cancel := context.WithCancel(ctx)
		select {
		case <-ctx.Done():
		case <-foreign:
			force = true
		case <-nodes.C(wait):
		case <-e.Keys.Changed():
		case <-e.Devices.Changed():
		case <-tick.C:
		}
		cancel()
	}
	return ctx.Err()
}

func (e *encryption) report(key string, problems []model.Problem) {
	e.n.report("podnetwork", key, problems)
}

func (e *encryption) problem(field, reason string) model.Problem {
	return model.Problem{Kind: "Node", Object: model.Name{Name: e.n.Node}, Field: field, Reason: reason}
}

func (e *encryption) failure(err error) []model.Problem {
	if err == nil || errors.Is(err, errNotYet) {
		return nil
	}
	return []model.Problem{e.problem("encryption", err.Error())}
}

// errNotYet says that the cluster's keys or nodes are not known yet.
var errNotYet = errors.New("keys of nodes are not known yet")

// round brings everything about once.
func (e *encryption) round(ctx context.Context, force bool) error {
	local, err := e.local(ctx)
	if err != nil {
		return err
	}
	snap := e.n.Store.Snapshot()
	published, known, err := e.Keys.Nodes()
	if !known {
		return errNotYet
	}
	errs := []error{err}
	now := time.Now()
	e.former.Look(snap, e.n.Node, e.n.podAddrs(), now)
	if s := e.state.Load(); s != nil && !hasNode(snap, e.n.Node) {
		// Devices and keys stay for the Node that comes back. Until then, pods of this node still run.
		return e.guard.Set(ctx, plan.MakeGuarded(snap, e.n.Node, s.Routes, &e.former), force)
	}
	have, err := e.devices(ctx, now)
	errs = append(errs, err, e.rotate(now))
	var own [plan.Devices]wireguard.Key
	for i, key := range e.private {
		own[i] = key.Public()
	}
	var peers [plan.Devices]plan.Peers
	remembered := e.remember(published, now)
	for i := range plan.Devices {
		peers[i] = plan.MakePeers(snap, e.n.Node, i, remembered, own, e.held, e.Nodes)
		if have[i], err = e.set(ctx, i, peers[i].List, local, snap); err != nil {
			errs = append(errs, err)
		}
	}
	e.held = map[wireguard.Key]string{}
	for _, p := range peers {
		maps.Copy(e.held, p.Nodes)
	}
	e.Keys.Publish(plan.Published{Keys: own, Ports: e.ports()})
	next := e.decide(snap, peers, have, now)
	if err := e.guard.Set(ctx, plan.MakeGuarded(snap, e.n.Node, next.Routes, &e.former), force); err != nil {
		return errors.Join(append(errs, err)...)
	}
	e.tell(next, published[e.n.Node], plan.Published{Keys: own, Ports: e.ports()}, now)
	errs = append(errs, e.look(snap, local.Uplink.Name))
	if old := e.state.Swap(next); old == nil || !old.Routes.Equal(next.Routes) {
		if old == nil {
			close(e.ready)
		}
		select {
		case e.n.found <- struct{}{}:
		default:
		}
	}
	return errors.Join(errs...)
}

// podAddrs are the addresses of this node's pods.
func (n *Network) podAddrs() (out []netip.Addr) {
	for _, l := range n.leases.List() {
		out = append(out, l.IPs...)
	}
	return out
}

func hasNode(snap model.Snapshot, name string) bool {
	_, ok := snap.Node(name)
	return ok
}

// forgetAfter is how long a node that has withdrawn its keys stays a peer: until then, no route leads to it any more.
const forgetAfter = 10 * time.Second

// remember returns the published keys, with those that were withdrawn a moment ago.
func (e *encryption) remember(published map[string]plan.Published, now time.Time) map[string]plan.Published {
	maps.Copy(e.known, published)
	for name := range e.known {
		if _, ok := published[name]; ok {
			delete(e.gone, name)
			continue
		}
		if _, ok := e.gone[name]; !ok {
			e.gone[name] = now
		}
		if now.Sub(e.gone[name]) > forgetAfter {
			delete(e.known, name)
			delete(e.gone, name)
		}
	}
	return e.known
}

// local is what is known of the node's links. The routes look at them again when they change.
func (e *encryption) local(ctx context.Context) (routes.NodeLinks, error) {
	if l := e.n.links.Load(); l != nil {
		return *l, nil
	}
	return e.n.look(ctx)
}

// devices reads the devices, and adopts their keys. A device that is gone gets its key again.
func (e *encryption) devices(ctx context.Context, now time.Time) (out [plan.Devices]*wireguard.State, err error) {
	var errs []error
	for i := range plan.Devices {
		out[i], err = e.Devices.Get(ctx, plan.Device(i))
		errs = append(errs, err)
		if out[i] != nil && !out[i].Private.IsZero() {
			e.private[i] = out[i].Private
		}
		if out[i] != nil {
			e.usage.Look(i, out[i].Peers, now)
		}
		if e.private[i].IsZero() {
			e.private[i], err = wireguard.NewKey()
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

// set makes a device what it is to be, and reads it.
func (e *encryption) set(ctx context.Context, i int, peers []wireguard.Peer, local routes.NodeLinks,
	snap model.Snapshot) (*wireguard.State, error) {
	c := wireguard.Config{Name: plan.Device(i), Private: e.private[i], Port: e.ports()[i], Peers: peers,
		MTU: local.EncryptedMTU(snap)}
	if me, ok := snap.Node(e.n.Node); ok {
		for _, is6 := range []bool{false, true} {
			if a := me.Primary(is6); a.IsValid() && (!is6 || c.MTU >= leastIPv6) {
				c.Addrs = append(c.Addrs, a)
			}
		}
	}
	if err := e.Devices.Set(ctx, c); err != nil {
		return nil, err
	}
	s, err := e.Devices.Get(ctx, c.Name)
	if err != nil || s == nil || s.Index == e.loosened[i] {
		return s, err
	}
	if err := e.n.loosen(c.Name); err != nil {
		return nil, err
	}
	e.loosened[i] = s.Index
	return s, nil
}

// decide chooses the device for each node.
func (e *encryption) decide(snap model.Snapshot, peers [plan.Devices]plan.Peers,
	have [plan.Devices]*wireguard.State, now time.Time) *EncryptionState {
	s := &EncryptionState{Kind: e.Devices.Kind(), Routes: routes.Encryption{Preferred: e.Preferred, Strict: e.Strict,
		Nodes: e.Nodes, Via: map[string]string{}}}
	type session struct {
		there      [plan.Devices]bool
		handshakes [plan.Devices]time.Time
	}
	sessions, rows := map[string]*session{}, map[string]*EncryptedPeer{}
	for n := range snap.Nodes() {
		if n.Name != e.n.Node {
			sessions[n.Name], rows[n.Name] = &session{}, &EncryptedPeer{Node: n.Name}
		}
	}
	for i, d := range have {
		if d == nil {
			continue
		}
		s.Routes.Indexes[i] = d.Index
		for _, p := range d.Peers {
			name, ok := peers[i].Nodes[p.Public]
			if !ok {
				continue
			}
			sessions[name].there[i] = true
			if p.Handshake.After(e.replaced[i]) {
				sessions[name].handshakes[i] = p.Handshake
			}
			row := rows[name]
			row.Received, row.Sent = row.Received+p.Received, row.Sent+p.Sent
			if p.Handshake.After(row.Handshake) {
				row.Handshake = p.Handshake
			}
			if p.Endpoint.IsValid() {
				row.Endpoint = p.Endpoint.String()
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		x, row := sessions[name], rows[name]
		d, fresh := plan.Choose(x.handshakes, now, e.Period)
		if !x.there[d] {
			d = 1 - d
		}
		_, gone := e.gone[name]
		switch {
		case gone:
			row.Note = "it has withdrawn its keys"
		case !x.there[d]:
			row.Note = peers[0].Missing[name]
		case fresh || e.Strict:
			row.Device = plan.Device(d)
			s.Routes.Via[name] = row.Device
		}
		if x.there[d] && !fresh && !gone {
			row.Note = "no handshake"
		}
		s.Peers = append(s.Peers, *row)
	}
	return s
}

// look has the witness look at the uplink.
func (e *encryption) look(snap model.Snapshot, uplink string) error {
	var own, peers []netip.Prefix
	for n := range snap.Nodes() {
		if n.Name == e.n.Node {
			own = append(own, n.PodCIDRs...)
		} else {
			peers = append(peers, n.PodCIDRs...)
		}
	}
	return e.witness.Look(uplink, own, peers)
}
