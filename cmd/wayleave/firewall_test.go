package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/agent/hostfirewall"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// Debian's own firewalld rejects what a node takes itself; queries of pods and other nodes, and heartbeats, are let in,
// and nothing else is. Status names the chain, and an uninstall leaves it as it was.
func TestTheHostsFirewallLetsQueriesIn(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "nft", "iptables-legacy")
	n := newDNSNode(t)
	const chain = "inet firewalld filter_INPUT"
	n.node.Run("nft", "-f", "../../podnetwork/testdata/firewalls/firewalld.nft")
	before := n.node.Run("nft", "list", "chain", "inet", "firewalld", "filter_INPUT")
	n.place(t, &dns.Feed{Log: slog.New(slog.DiscardHandler)})
	for _, port := range []string{"53", "54"} {
		who(t, n.node, n.vip.String()+":"+port, "me")
	}
	who(t, n.node, "172.30.0.11:10053", "me")
	who(t, n.node, "172.30.0.11:9999", "me")
	tables, err := nft.NewKernel(n.node.FD())
	if err != nil {
		t.Fatal(err)
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "node", InternalIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}})
		w.PutService(&model.Service{Name: agent.ClusterDNS(), ClusterIPs: []netip.Addr{n.vip}})
	}); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(model.NodeKind | model.ServiceKind)
	log := slog.New(slog.DiscardHandler)
	a := &agent.Node{Name: "node", Core: agent.NewCore(log, store, config.Default(), features.All())}
	if a.Firewall, err = agent.NewFirewall(n.node.FD(), tables, filepath.Join(t.TempDir(), "lock")); err != nil {
		t.Fatal(err)
	}
	if got, err := askWho(n.pod, "udp", n.vip.String()+":53"); err == nil {
		t.Fatalf("the firewall drops nothing: %s answers", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = hostfirewall.New().Own(a)[0].Run(ctx) }()
	defer func() { cancel(); <-done }()
	answered := func(ns *testnet.NS, addr string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			testnet.Eventually(t, 5*time.Second, func() error {
				got, err := askWho(ns, network, addr)
				if err == nil && got != "me" {
					err = fmt.Errorf("%q answers", got)
				}
				return err
			})
		}
	}
	all := func() {
		t.Helper()
		answered(n.pod, n.vip.String()+":53")
		answered(n.other, "172.30.0.11:10053")
		for _, addr := range []string{n.vip.String() + ":54", "172.30.0.11:9999"} {
			if got, err := askWho(n.pod, "udp", addr); err == nil {
				t.Errorf("%s at %s is let in", got, addr)
			}
		}
	}
	all()
	// a reload
	n.node.Run("sh", "-c", "nft delete table inet firewalld; nft -f ../../podnetwork/testdata/firewalls/firewalld.nft")
	all()
	testnet.Eventually(t, 5*time.Second, func() error {
		if fact := a.Fact("dns", "firewall"); !strings.Contains(fact, "accepted in its chains "+chain) {
			return fmt.Errorf("status says %q", fact)
		}
		return nil
	})
	cancel()
	<-done
	if chains, err := a.Firewall.Withdraw(t.Context(), hostfirewall.Owner); err != nil ||
		fmt.Sprint(chains) != "["+chain+"]" {
		t.Errorf("withdrawn from %v, %v", chains, err)
	}
	if after := n.node.Run("nft", "list", "chain", "inet", "firewalld", "filter_INPUT"); after != before {
		t.Errorf("before it was %s, now %s", before, after)
	}
}

// Heartbeats and DNS are let in where they are on, at the addresses of this node alone.
func TestDoorsFollowTheSettings(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	if err := store.Write(func(w *model.Writer) {
		w.PutNode(&model.Node{Name: "n1", InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.11")}})
		w.PutNode(&model.Node{Name: "n2", InternalIPs: []netip.Addr{netip.MustParseAddr("192.0.2.12")}})
		w.PutService(&model.Service{Name: agent.ClusterDNS(),
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
	}); err != nil {
		t.Fatal(err)
	}
	n := &agent.Node{Name: "n1",
		Core: agent.NewCore(slog.New(slog.DiscardHandler), store, config.Default(), features.All())}
	for _, tc := range []struct {
		dns, balancer bool
		want          string
	}{
		{true, true, "[10.96.0.10:53 192.0.2.11:10053 192.0.2.11:7946]"},
		{true, false, "[10.96.0.10:53 192.0.2.11:10053]"},
		{false, true, "[192.0.2.11:7946]"},
		{false, false, "[]"},
	} {
		n.Config.DNS.Enabled, n.Config.LoadBalancer.Enabled = tc.dns, tc.balancer
		got := []string{}
		for i, r := range hostfirewall.Passes(n, store.Snapshot())[0].Rules {
			if i%2 == 0 { // each for UDP and TCP
				got = append(got, netip.AddrPortFrom(r.Dst, r.Dport).String())
			}
		}
		if fmt.Sprint(got) != tc.want {
			t.Errorf("with dns %v and loadbalancer %v: %v, want %s", tc.dns, tc.balancer, got, tc.want)
		}
	}
}

// A node port whose endpoint is on another node is forwarded between uplinks, where pods have no part: a host that
// forwards nothing forwards that, and its replies.
func TestTheHostsFirewallForwardsServices(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "nft", "iptables-legacy")
	n := newDNSNode(t)
	tables, err := nft.NewKernel(n.node.FD())
	if err != nil {
		t.Fatal(err)
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	name := model.Name{Namespace: "default", Name: "web"}
	self := &model.Node{Name: "node", InternalIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}}
	if err := store.Write(func(w *model.Writer) {
		w.PutNode(self)
		w.PutService(&model.Service{Name: name, Type: model.NodePort,
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.77")},
			Ports:      []model.ServicePort{{Name: "web", Protocol: model.TCP, Port: 80, NodePort: 30080}}})
		w.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "default", Name: "web-1"}, Service: "web",
			Ports: []model.EndpointPort{{Name: "web", Protocol: model.TCP, Port: 8080}},
			Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("172.30.0.12"), Node: "other", Ready: true,
				Serving: true}}})
	}); err != nil {
		t.Fatal(err)
	}
	store.MarkSynced(model.NodeKind | model.ServiceKind)
	plan, ok, problems := service.MakeWith(store.Snapshot(), name, service.Options{Node: "node"})
	if !ok || len(problems) > 0 {
		t.Fatal(ok, problems)
	}
	mode := nftables.New(tables, &conntrack.Fake{})
	mode.SetNodeFacts(service.NodeFacts{NodeIPs: self.InternalIPs})
	if err := mode.Sync(t.Context(), map[model.Name]service.Plan{name: plan}); err != nil {
		t.Fatal(err)
	}
	who(t, n.other, "172.30.0.12:8080", "endpoint")
	ask := func() error {
		got, err := askWho(n.pod, "tcp", "172.30.0.11:30080")
		if err == nil && got != "endpoint" {
			err = fmt.Errorf("%q answers", got)
		}
		return err
	}
	testnet.Eventually(t, 5*time.Second, ask)
	log := slog.New(slog.DiscardHandler)
	a := &agent.Node{Name: "node", Core: agent.NewCore(log, store, config.Default(), features.All())}
	if a.Firewall, err = agent.NewFirewall(n.node.FD(), tables, filepath.Join(t.TempDir(), "lock")); err != nil {
		t.Fatal(err)
	}
	go func() { _ = hostfirewall.New().Own(a)[0].Run(t.Context()) }()
	for _, load := range []string{
		"nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'",
		"nft delete table ip filter; iptables-nft -P FORWARD DROP",
		"iptables-nft -P FORWARD ACCEPT; nft delete table ip filter; iptables-legacy -A FORWARD -j REJECT",
	} {
		n.node.Run("env", "XTABLES_LOCKFILE="+filepath.Join(t.TempDir(), "lock"), "sh", "-c", load)
		testnet.Eventually(t, 15*time.Second, func() error {
			if chains, err := a.Firewall.Accepting(t.Context(), hostfirewall.Owner); err != nil || len(chains) != 1 {
				return fmt.Errorf("after %s: accepted in %v, %v", load, chains, err)
			}
			return ask()
		})
		if got, err := askWho(n.pod, "tcp", "172.30.0.12:8080"); err == nil {
			t.Errorf("%s answers, which is of no Service", got)
		}
	}
}
