package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"wayleave.dev/agent"
	proxy "wayleave.dev/agent/service"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/nftables"
)

// The local DNS server gets all queries while it lives, by UDP and TCP, and another
// node's gets them while it does not: what the placement of DNS leaves tracked, the
// service proxy takes. Another server on the wildcard address gets none.
func TestQueriesGoToTheLocalServerWhileItLives(t *testing.T) {
	n := newDNSNode(t)
	pod, node, vip := n.pod, n.node, n.vip
	who(t, n.other, "172.30.0.12:10053", "other")
	n.place(t, &dns.Feed{})
	asked := func(want string) {
		t.Helper()
		for i := range 40 {
			for _, network := range []string{"udp", "tcp"} {
				if got, err := askWho(pod, network, vip.String()+":53"); err != nil || got != want {
					t.Fatalf("query %d by %s: %q answered, %v; want %s", i, network, got, err, want)
				}
			}
		}
	}
	asked("other")
	stop := who(t, node, vip.String()+":53", "local")
	asked("local")
	stop()
	asked("other")
	stop = who(t, node, "0.0.0.0:53", "stranger")
	asked("other")
	stop()
	who(t, node, vip.String()+":53", "local")
	asked("local")
}

// dnsNode is a node with a pod, and another node; the service proxy knows both as
// endpoints of the cluster DNS.
type dnsNode struct {
	pod, node, other *testnet.NS
	vip              netip.Addr
	nft              nft.Conn
	links            link.Net
}

func newDNSNode(t *testing.T) *dnsNode {
	t.Helper()
	testnet.Need(t, "nft")
	pod, node, other := testnet.New(t, "pod"), testnet.New(t, "node"), testnet.New(t, "other")
	testnet.Veth(pod, "eth0", node, "wl0")
	testnet.Veth(node, "eth0", other, "eth0")
	for _, a := range []struct {
		ns         *testnet.NS
		link, addr string
	}{{pod, "eth0", "10.244.1.2/24"}, {node, "wl0", "10.244.1.1/24"}, {node, "eth0", "172.30.0.11/24"},
		{other, "eth0", "172.30.0.12/24"}} {
		a.ns.Addr(a.link, a.addr)
	}
	pod.Route("0.0.0.0/0", "10.244.1.1")
	other.Route("10.244.1.0/24", "172.30.0.11")
	node.Router()

	vip := netip.MustParseAddr("10.96.0.10")
	conn, err := nft.NewKernel(node.FD())
	if err != nil {
		t.Fatal(err)
	}
	track, err := conntrack.NewKernel(node.FD())
	if err != nil {
		t.Fatal(err)
	}
	links, err := link.NewKernel(node.FD(), filepath.Join(t.TempDir(), "addresses"))
	if err != nil {
		t.Fatal(err)
	}
	mode := nftables.New(conn, track)
	mode.SetNodeFacts(service.NodeFacts{NodeIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	if err := mode.Sync(t.Context(), map[model.Name]service.Plan{agent.ClusterDNS(): kubeDNS(t, vip)}); err != nil {
		t.Fatal(err)
	}
	return &dnsNode{pod, node, other, vip, conn, links}
}

// kubeDNS is what the node's service proxy makes of the Service: both nodes' servers are
// ready, as slices tell for a while after one was killed.
func kubeDNS(t *testing.T, vip netip.Addr) service.Plan {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	err = store.Write(func(w *model.Writer) {
		svc := &model.Service{Name: agent.ClusterDNS(), ClusterIPs: []netip.Addr{vip}}
		slice := &model.EndpointSlice{Name: model.Name{Namespace: svc.Name.Namespace, Name: "kube-dns-1"},
			Service: svc.Name.Name}
		for _, p := range []model.Protocol{model.TCP, model.UDP} {
			svc.Ports = append(svc.Ports, model.ServicePort{Name: p.String(), Protocol: p, Port: 53})
			slice.Ports = append(slice.Ports, model.EndpointPort{Name: p.String(), Protocol: p, Port: dns.NodePort})
		}
		for node, addr := range map[string]string{"node": "172.30.0.11", "other": "172.30.0.12"} {
			slice.Endpoints = append(slice.Endpoints, model.Endpoint{Addr: netip.MustParseAddr(addr), Node: node,
				Ready: true, Serving: true})
		}
		w.PutService(svc)
		w.PutEndpointSlice(slice)
	})
	if err != nil {
		t.Fatal(err)
	}
	plan, ok, problems := service.MakeWith(store.Snapshot(), agent.ClusterDNS(),
		proxy.PlanOptions("node", config.Default())(agent.ClusterDNS()))
	if !ok || len(problems) > 0 {
		t.Fatal(ok, problems)
	}
	return plan
}

// place has the node serve DNS at the VIP, by the servers of the feed.
func (n *dnsNode) place(t *testing.T, feed *dns.Feed) {
	t.Helper()
	p := &dns.Placement{Net: n.links, Bypass: dns.NFTables{Conn: n.nft}, Feed: feed,
		Domains:    []string{"cluster.local."},
		Forwarding: func([]netip.Addr) schema.Forwarding { return schema.Forwarding{} }}
	if err := p.Sync(t.Context(), map[model.Name]dns.Place{{}: {VIPs: []netip.Addr{n.vip},
		Clients: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}}); err != nil {
		t.Fatal(err)
	}
}

// who answers each line and datagram with a name, until stop or the test's end.
func who(t *testing.T, ns *testnet.NS, addr, name string) (stop func()) {
	l, p := ns.Listen("tcp4", addr), ns.ListenPacket("udp4", addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					fmt.Fprintln(c, name)
				}
			}()
		}
	}()
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte(name+"\n"), from)
		}
	}()
	return func() {
		if err := errors.Join(l.Close(), p.Close()); err != nil {
			t.Error(err)
		}
	}
}

func askWho(ns *testnet.NS, network, addr string) (string, error) {
	c, err := ns.Dial(network, addr, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return sayWho(c)
}

func sayWho(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, "who"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return string([]byte(line)[:max(0, len(line)-1)]), err
}
