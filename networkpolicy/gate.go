package networkpolicy

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"wayleave.dev/model"
)

// Gate holds back a new pod until its isolation is in the kernel. The CNI server, which assigns addresses, calls
// Isolate; the loop that programs policies calls Take and AfterRound. All methods may be called concurrently.
type Gate struct {
	node string
	wake chan struct{}

	mu      sync.Mutex
	dns     []netip.Addr
	ingress bool
	// pods are the leases. given counts their changes, and taken those that the loop has planned with.
	pods         map[netip.Addr]model.Name
	known        bool
	given, taken uint64
	ready        chan struct{} // closed with the first leases
	waiters      map[*waiter]struct{}
}

type waiter struct {
	ips   []netip.Addr
	given uint64
	done  chan struct{}
}

// NewGate makes a gate for a node.
func NewGate(node string) *Gate {
	return &Gate{node: node, wake: make(chan struct{}, 1), ready: make(chan struct{}), waiters: map[*waiter]struct{}{}}
}

// Leases sets the pods that have addresses of this node. It must be called before a new address is in use.
func (g *Gate) Leases(pods map[netip.Addr]model.Name) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.known {
		g.known = true
		close(g.ready)
	}
	g.pods = maps.Clone(pods)
	g.changed()
}

// DNS sets the addresses of the Service kube-dns.
func (g *Gate) DNS(addrs []netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.dns, addrs) {
		g.dns = slices.Clone(addrs)
		g.changed()
	}
}

// Ingress sets whether nodes run the ingress proxy.
func (g *Gate) Ingress(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ingress != on {
		g.ingress = on
		g.changed()
	}
}

func (g *Gate) changed() {
	g.given++
	g.ring()
}

func (g *Gate) ring() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Known returns once the leases were set for the first time. An agent that starts must not program before: running pods
// would count as gone.
func (g *Gate) Known(ctx context.Context) error {
	select {
	case <-g.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wake is for the loop: the leases have changed.
func (g *Gate) Wake() <-chan struct{} { return g.wake }

// Take is for the loop: what to plan with, and whether that is new.
func (g *Gate) Take() (NodeInputs, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := g.taken != g.given || g.given == 0
	g.taken = g.given
	return NodeInputs{Node: g.node, Pods: g.pods, DNS: g.dns, Ingress: g.ingress}, changed
}

// AfterRound is for the loop: it releases the pods whose isolation is in the kernel, which applied says of a key.
func (g *Gate) AfterRound(applied func(Key) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := range g.waiters {
		if w.given <= g.taken && w.isIsolated(applied) {
			close(w.done)
			delete(g.waiters, w)
		}
	}
}

func (w *waiter) isIsolated(applied func(Key) bool) bool {
	for _, ip := range w.ips {
		for _, d := range []Direction{Ingress, Egress} {
			if !applied(Key{Kind: PodEntry, Direction: d, Addr: ip}) {
				return false
			}
		}
	}
	return true
}

// Isolate returns when the policy rules for the addresses, as leased now, are in the kernel; with an error when ctx
// ends before.
func (g *Gate) Isolate(ctx context.Context, ips []netip.Addr) error {
	w := &waiter{ips: ips, done: make(chan struct{})}
	g.mu.Lock()
	w.given = g.given
	g.waiters[w] = struct{}{}
	g.ring() // the last round may have ended before this call
	g.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		g.mu.Lock()
		delete(g.waiters, w)
		g.mu.Unlock()
		return fmt.Errorf("network policy: %v are not programmed: %w", ips, context.Cause(ctx))
	}
}
