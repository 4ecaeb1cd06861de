package loadbalancer

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave.dev/loadbalancer"
	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/loadbalancer/peers"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// interfacesEvery is how often the node's interfaces are looked at.
const interfacesEvery = 2 * time.Second

// announcer tells the process that answers for addresses what there is to do, whole, and
// remembers who owned what since when.
type announcer struct {
	node string
	cfg  speaker.State // what does not change
	sup  *speaker.Supervisor
	// began is when it was made.
	began time.Time

	mu sync.Mutex
	// planned says that plans are those of all Services.
	planned bool
	plans   map[model.Name]loadbalancer.Announcement
	// choice is whether the cluster's writer serves Services without a class.
	choice choice
	peers  []peers.Peer
	keys   [][]byte
	last   speaker.State
	seen   map[netip.Addr]vipStatus
}

// choice is a choice of the cluster as this node knows it.
type choice uint8

const (
	// unknown counts as chosenOther: two load balancers must not answer for an address by mistake.
	unknown choice = iota
	chosenOwn
	chosenOther
)

// setChoice notes whether Wayleave serves Services without a class.
func (n *announcer) setChoice(own bool) {
	n.mu.Lock()
	n.choice = chosenOther
	if own {
		n.choice = chosenOwn
	}
	n.mu.Unlock()
	_ = n.tell() // the loop over the interfaces tries again
}

// leaves reports whether Services without a class are another load balancer's.
func (n *announcer) leaves() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.choice == chosenOther
}

// served are the plans of Services that this cluster's writer serves. The caller holds the lock.
func (n *announcer) served() map[model.Name]loadbalancer.Announcement {
	out := maps.Clone(n.plans)
	maps.DeleteFunc(out, func(_ model.Name, a loadbalancer.Announcement) bool {
		return a.Unclassed && n.choice != chosenOwn
	})
	return out
}

// isIdle reports whether there is nothing to answer for as long as another load balancer has the Services. Heartbeats
// are not sent then: MetalLB's speaker needs the same port. The caller holds the lock.
func (n *announcer) isIdle(served map[model.Name]loadbalancer.Announcement) bool {
	return n.choice != chosenOwn && len(served) == 0
}

// idle is isIdle for callers without the lock.
func (n *announcer) idle() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.isIdle(n.served())
}

var _ reconcile.Target[model.Name, loadbalancer.Announcement] = (*announcer)(nil)

// Sync implements reconcile.Target.
func (n *announcer) Sync(_ context.Context, plans map[model.Name]loadbalancer.Announcement) error {
	n.mu.Lock()
	n.plans, n.planned = plans, true
	n.mu.Unlock()
	return n.tell()
}

// Apply implements reconcile.Target.
func (n *announcer) Apply(_ context.Context, set map[model.Name]loadbalancer.Announcement, del []model.Name) error {
	n.mu.Lock()
	maps.Copy(n.plans, set)
	for _, k := range del {
		delete(n.plans, k)
	}
	n.mu.Unlock()
	return n.tell()
}

// preparedWithin is how long a standby waits for the key of heartbeats: an elected writer
// that is of an earlier version may give none.
const preparedWithin = 30 * time.Second

// prepared says what is missing for the addresses to stay when the agent before ends: the
// kubelet ends it once this one is ready.
func (n *announcer) prepared(now time.Time) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.Sub(n.began) >= preparedWithin {
		return nil
	}
	switch {
	case !n.planned:
		return errors.New("loadbalancer: addresses are not planned yet")
	case n.choice == unknown:
		return errors.New("loadbalancer: it is not known yet who serves Services without a class")
	case len(n.peers) == 0:
		return errors.New("loadbalancer: the nodes are not known yet")
	case len(n.keys) == 0:
		return errors.New("loadbalancer: there is no key of heartbeats yet")
	case !n.sup.Report().Running:
		return errors.New("loadbalancer: the process that answers for addresses does not run yet")
	}
	return nil
}

// setKeys replaces the keys of heartbeats, the newest first.
func (n *announcer) setKeys(keys [][]byte) {
	n.mu.Lock()
	n.keys = keys
	n.mu.Unlock()
	_ = n.tell() // the loop over the interfaces tries again
}

// setPeers replaces the nodes.
func (n *announcer) setPeers(list []peers.Peer) {
	n.mu.Lock()
	n.peers = list
	n.mu.Unlock()
	_ = n.tell()
}

// tell gives the process the whole state, when it differs from what it has.
func (n *announcer) tell() error {
	links, err := interfaces()
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	state := n.cfg
	state.Peers, state.Keys = n.peers, n.keys
	own := map[netip.Addr]bool{}
	for _, p := range n.peers {
		if p.Name == n.node {
			for _, a := range p.Addrs {
				own[a] = true
			}
		}
	}
	served := n.served()
	if n.isIdle(served) {
		state.Keys = nil
	}
	users := users(served)
	for _, v := range loadbalancer.Combine(served) {
		state.VIPs = append(state.VIPs, l2.VIP{Addr: v.Addr, Service: users[v.Addr], Eligible: v.Eligible,
			Interfaces: match(links, v.Interfaces, own)})
	}
	if !reflect.DeepEqual(state, n.last) {
		n.last = state
		n.sup.Set(state)
	}
	return nil
}

// users names the Services of each address.
func users(plans map[model.Name]loadbalancer.Announcement) map[netip.Addr]string {
	names := map[netip.Addr][]string{}
	for _, k := range slices.SortedFunc(maps.Keys(plans), model.Name.Compare) {
		for _, v := range plans[k].VIPs {
			names[v.Addr] = append(names[v.Addr], k.String())
		}
	}
	out := map[netip.Addr]string{}
	for a, list := range names {
		out[a] = strings.Join(list, ",")
	}
	return out
}
