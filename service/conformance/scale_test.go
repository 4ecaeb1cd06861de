package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/lossmeter"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// many is how many services there are beside the one with traffic.
const many = 10_000

// TestTenThousandServices: restarts with 10,000 services of 10 endpoints lose nothing,
// and a bad one among them stops none.
func TestTenThousandServices(t *testing.T) {
	w := NewWorld(t, realNftables(t))
	w.Set(web(), w.Pods[2])
	err := w.Store.Write(func(tx *model.Writer) {
		for i := range many {
			name := model.Name{Namespace: "many", Name: fmt.Sprintf("s%05d", i)}
			ip := netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)})
			if i == many/2 {
				ip = netip.AddrFrom4([4]byte{10, 97, 0, 0}) // another's
			}
			tx.PutService(&model.Service{Name: name, ClusterIPs: []netip.Addr{ip},
				Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}})
			s := &model.EndpointSlice{Name: name, Service: name.Name,
				Ports: []model.EndpointPort{{Protocol: model.TCP, Port: 8080}}}
			for k := range 10 {
				s.Endpoints = append(s.Endpoints,
					model.Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(130 + k), byte(i >> 8), byte(i)}),
						Ready: true, Serving: true})
			}
			tx.PutEndpointSlice(s)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.modes[0].Program(t.Context(), w.Store.Snapshot()); err != nil {
		t.Errorf("the bad one reached the kernel: %v", err)
	}
	loser := model.Name{Namespace: "many", Name: "s05000"}
	if _, _, problems := service.Make(w.Store.Snapshot(), loser, w.Nodes[0].Name); len(problems) != 1 ||
		problems[0].Object != loser ||
		!strings.Contains(problems[0].Reason, "many/s00000") {
		t.Errorf("the bad one is not named: %v", problems)
	}
	out := w.Nodes[0].NS.Run("nft", "get", "element", "ip", nftables.TableName, "frontends",
		fmt.Sprintf("{ 10.97.%d.%d . tcp . 80 }", (many-1)>>8, (many-1)&255))
	if !strings.Contains(out, "goto vip-10") {
		t.Errorf("the last service is %s", out)
	}
	server := w.Pods[2].NS
	l, u := server.Listen("tcp", ":8081"), server.ListenPacket("udp", ":8081")
	go func() { _ = lossmeter.ServeTCP(l) }()
	go func() { _ = lossmeter.ServeUDP(u) }()
	meter := &model.Service{Name: model.Name{Namespace: "default", Name: "meter"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.77")},
		Ports: []model.ServicePort{{Name: "t", Protocol: model.TCP, Port: 7},
			{Name: "u", Protocol: model.UDP, Port: 7}}}
	err = w.Store.Write(func(tx *model.Writer) {
		tx.PutService(meter)
		tx.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "default", Name: "meter"},
			Service: "meter",
			Ports: []model.EndpointPort{{Name: "t", Protocol: model.TCP, Port: 8081},
				{Name: "u", Protocol: model.UDP, Port: 8081}},
			Endpoints: []model.Endpoint{{Addr: w.Pods[2].IPs[0], Ready: true, Serving: true}}})
	})
	if err != nil {
		t.Fatal(err)
	}
	program := func() {
		if err := w.modes[0].Program(t.Context(), w.Store.Snapshot()); err != nil && !strings.Contains(err.Error(),
			"many/s05000") {
			t.Error(err)
		}
	}
	program()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan lossmeter.Report, 1)
	go func() {
		r, err := lossmeter.Run(ctx, w.Pods[0].NS.Dial, []lossmeter.Probe{{Kind: "udp", Target: "10.96.0.77:7"},
			{Kind: "tcp", Target: "10.96.0.77:7"}, {Kind: "connect", Target: "10.96.0.77:7"}})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	time.Sleep(300 * time.Millisecond)
	for range 2 {
		w.modes[0] = w.start(w.Nodes[0]) // as after kill -9
		program()
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	r := <-done
	if r.Lost() > 0 || r.Sent() < 500 {
		t.Errorf("lost: %s", r)
	}
}

// realNftables starts the nftables mode on the kernel of a node.
func realNftables(t *testing.T) func(n *Node) Mode {
	testnet.Need(t, "nft")
	return func(n *Node) Mode {
		conn, err := nft.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		track, err := conntrack.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		m := &nftMode{Driven{Mode: nftables.New(conn, track), Node: n.Name}}
		n.NS.Sysctl("net/ipv4/conf/all/route_localnet", "1")
		m.Mode.SetNodeFacts(localOf(n))
		return m
	}
}

// What others have in the kernel, kubelet's chains among it, is not touched by programming
// and by taking away.
func TestOthersTablesAreLeftAlone(t *testing.T) {
	start := realNftables(t)
	ns := testnet.New(t, "node1")
	foreign := "add table ip mangle; add chain ip mangle KUBE-KUBELET-CANARY; add table ip nat; add chain ip nat " +
		"KUBE-POSTROUTING; add rule ip nat KUBE-POSTROUTING counter masquerade; add table inet mine; add set inet " +
		"mine s { type ipv4_addr; elements = { 192.0.2.1 }; }"
	ns.Run("nft", foreign)
	list := func() (out string) {
		for _, table := range []string{"ip mangle", "ip nat", "inet mine"} {
			out += ns.Run("nft", append([]string{"list", "table"}, strings.Fields(table)...)...)
		}
		return out
	}
	before := list()
	m := start(&Node{Name: "node1", NS: ns, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}).(*nftMode)
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Write(func(tx *model.Writer) { tx.PutService(web()) }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Program(t.Context(), store.Snapshot()); err != nil {
			t.Fatal(err)
		}
		m.Forget()
	}
	if now := list(); now != before {
		t.Errorf("programming changed\n%s\nto\n%s", before, now)
	}
	if err := m.Mode.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := list(); now != before {
		t.Errorf("taking away changed\n%s\nto\n%s", before, now)
	}
}
