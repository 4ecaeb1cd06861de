package nftables

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// The large world: 10 namespaces of 100 pods each, a tenth of which is on this
// node, and policies spread over the namespaces. A policy isolates the pods of one application
// (10 of a namespace) in both directions, lets in those of another application and those
// of a team in a fifth of the namespaces, and a block at a port of its own, and lets out
// to its own application and to DNS.
const (
	largeNamespaces = 10
	largePods       = 1000
	largePolicies   = 1000
)

func largeNamespace(i int) string { return fmt.Sprintf("ns%d", i%largeNamespaces) }

// largeAddr is that of the i-th pod. Pod 0 is the lab's pod a, and pod 210, of another
// application of the namespace and of another node, is the lab's far one.
func largeAddr(i int) netip.Addr {
	switch i {
	case 0:
		return addr("10.244.1.2")
	case 210:
		return farAddr(false)
	}
	return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
}

func largeAddr6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 1, 14: byte(i >> 8), 15: byte(i)})
}

func largePod(i int, node string) *model.Pod {
	return &model.Pod{Name: model.Name{Namespace: largeNamespace(i), Name: fmt.Sprintf("pod%d", i)}, Node: node,
		IPs: []netip.Addr{largeAddr(i), largeAddr6(i)},
		Labels: map[string]string{"app": fmt.Sprintf("app%d", i/largeNamespaces%10),
			"team": fmt.Sprintf("team%d", i%7)},
		Ports: []model.NamedPort{{Name: "web", Protocol: model.TCP, Port: 80},
			{Name: "web", Protocol: model.UDP, Port: 80}}}
}

func largeNode(i int) string {
	if i%100 < 50 && i < 200 {
		return "here"
	}
	return "there"
}

func having(key, value string) model.Selector {
	return model.Selector{Requirements: []model.Requirement{{Key: key, Operator: model.In, Values: []string{value}}}}
}

func largePolicy(i int) *model.NetworkPolicy {
	n := i / largeNamespaces // within the namespace
	env, kubeSystem := having("env", fmt.Sprintf("env%d", n%5)), having("name", "kube-system")
	app := having("app", fmt.Sprintf("app%d", n%10))
	web := []model.PolicyPort{{Protocol: model.TCP, Name: "web"}, {Protocol: model.UDP, Name: "web"}}
	return &model.NetworkPolicy{
		Name: model.Name{Namespace: largeNamespace(i), Name: fmt.Sprintf("policy%d", i)}, Subject: app,
		IsolatesIngress: true, IsolatesEgress: true,
		Ingress: []model.PolicyRule{
			{Peers: []model.PolicyPeer{{Pods: having("app", fmt.Sprintf("app%d", (n+1)%10))},
				{Namespaces: &env, Pods: having("team", fmt.Sprintf("team%d", n%7))}}, Ports: web},
			{Peers: []model.PolicyPeer{{Block: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n), 0}), 24)},
				{Block: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 2, 3: byte(n)}), 32)}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, From: uint16(9000 + n), To: uint16(9000 + n)}}},
		},
		Egress: []model.PolicyRule{
			{Peers: []model.PolicyPeer{{Pods: app}}, Ports: web},
			{Peers: []model.PolicyPeer{{Namespaces: &kubeSystem, Pods: having("k8s-app", "kube-dns")}},
				Ports: []model.PolicyPort{{Protocol: model.UDP, From: 53, To: 53}}}},
	}
}

// large is the large world with some of its policies, followed by a mode.
type large struct {
	t       testing.TB
	store   *model.Store
	watch   *model.Watcher
	planner *networkpolicy.Planner
	mode    *Mode
	entries map[entryKey]entry
}

func largeLocal() networkpolicy.NodeInputs {
	return networkpolicy.NodeInputs{Node: "here", DNS: []netip.Addr{dnsVIP(false), dnsVIP(true)}, Ingress: true}
}

func newLarge(t testing.TB, policies int, mode *Mode) *large {
	t.Helper()
	w := &large{t: t, mode: mode, entries: map[entryKey]entry{}, planner: networkpolicy.NewPlanner(largeLocal())}
	var err error
	if w.store, err = model.NewStore(); err != nil {
		t.Fatal(err)
	}
	if w.watch, err = w.store.Watch(networkpolicy.PlannerKinds); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.watch.Close(); _ = w.store.Close() })
	w.write(func(tx *model.Writer) {
		tx.PutNamespace(&model.Namespace{Name: "kube-system", Labels: map[string]string{"name": "kube-system"}})
		for i := range largeNamespaces {
			tx.PutNamespace(&model.Namespace{Name: largeNamespace(i),
				Labels: map[string]string{"env": fmt.Sprintf("env%d", i%5)}})
		}
		tx.PutNode(&model.Node{Name: "here", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"),
			netip.MustParsePrefix("fd00:244:0:1::/64")}})
		for i := range largePods {
			tx.PutPod(largePod(i, largeNode(i)))
		}
		for i := range policies {
			tx.PutNetworkPolicy(largePolicy(i))
		}
	})
	return w
}

func (w *large) write(fn func(*model.Writer)) {
	w.t.Helper()
	if err := w.store.Write(fn); err != nil {
		w.t.Fatal(err)
	}
}

// follow has the kernel hold what the store says; it returns how many entries changed.
func (w *large) follow() int {
	w.t.Helper()
	snap, changes, _ := w.watch.Poll()
	set, del := map[entryKey]entry{}, []entryKey{}
	for _, k := range w.planner.Keys(snap, changes) {
		e, ok, _ := w.planner.Plan(snap, k)
		old, had := w.entries[k]
		switch {
		case ok && had && old.Equal(e):
		case ok:
			w.entries[k], set[k] = e, e
		case had:
			delete(w.entries, k)
			del = append(del, k)
		}
	}
	if !w.mode.program.Synced() {
		if err := w.mode.Sync(w.t.Context(), maps.Clone(w.entries)); err != nil {
			w.t.Fatal(err)
		}
	} else if err := w.mode.Apply(w.t.Context(), set, del); err != nil {
		w.t.Fatal(err)
	}
	return len(set) + len(del)
}

// realMode is a mode in the kernel of a namespace.
func realMode(t testing.TB, ns *testnet.NS) *Mode {
	t.Helper()
	conn, err := nft.NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	return New(conn, conntrack.NewTracker(ns.FD()))
}
