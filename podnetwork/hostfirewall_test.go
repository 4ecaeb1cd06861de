package podnetwork

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/podnetwork/routes"
)

// hostFirewall is a firewall as hosts have it, with the chains that must have accepted pods.
type hostFirewall struct {
	name         string
	load, unload func(t *testing.T, ns *testnet.NS)
	chains       []string
}

// nftFile loads a text of nft, and unload its table.
func nftFile(name, table string, chains ...string) hostFirewall {
	return hostFirewall{name: name, chains: chains,
		load:   func(_ *testing.T, ns *testnet.NS) { ns.Run("nft", "-f", "testdata/firewalls/"+name+".nft") },
		unload: func(_ *testing.T, ns *testnet.NS) { ns.Run("nft", "delete table "+table) }}
}

func nftText(name, table, text string, chains ...string) hostFirewall {
	f := nftFile(name, table, chains...)
	f.load = func(_ *testing.T, ns *testnet.NS) { ns.Run("nft", text) }
	return f
}

// restored loads texts of iptables-save by programs of one flavour; the text of IPv6 may be empty.
func restored(name, flavour string, text func(t *testing.T, program string) string, chains ...string) hostFirewall {
	families := []string{"iptables", "ip6tables"}
	lock := func(t *testing.T) string { return "XTABLES_LOCKFILE=" + filepath.Join(t.TempDir(), "lock") }
	return hostFirewall{name: name + " in iptables-" + flavour, chains: chains,
		load: func(t *testing.T, ns *testnet.NS) {
			for _, p := range families {
				file := filepath.Join(t.TempDir(), p)
				if err := os.WriteFile(file, []byte(text(t, p)), 0o600); err != nil {
					t.Fatal(err)
				}
				ns.Run("env", lock(t), "sh", "-c", p+"-"+flavour+"-restore < "+file)
			}
		},
		unload: func(t *testing.T, ns *testnet.NS) {
			for _, p := range families {
				program := p + "-" + flavour
				ns.Run("env", lock(t), "sh", "-c",
					fmt.Sprintf("%[1]s -P INPUT ACCEPT; %[1]s -P FORWARD ACCEPT; %[1]s -F; %[1]s -X", program))
				if flavour == "nft" {
					ns.Run("nft", "delete table "+map[string]string{"iptables": "ip", "ip6tables": "ip6"}[p]+" filter")
				}
			}
		}}
}

func ufw(t *testing.T, program string) string {
	raw, err := os.ReadFile("testdata/firewalls/ufw." + program)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// redHat is what iptables-services of Red Hat and the images of some clouds have.
func redHat(_ *testing.T, program string) string {
	icmp, with := "icmp", "icmp-host-prohibited"
	if program == "ip6tables" {
		icmp, with = "ipv6-icmp", "icmp6-adm-prohibited"
	}
	return strings.NewReplacer("ICMP", icmp, "WITH", with).Replace(`*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ICMP -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with WITH
-A FORWARD -j REJECT --reject-with WITH
COMMIT
`)
}

// docker is what Docker makes, with its bridge.
func docker(_ *testing.T, _ string) string {
	return `*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -o docker0 -j DOCKER
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
`
}

// kubeRouter is what kube-router leaves on a node.
func kubeRouter(_ *testing.T, _ string) string {
	return `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A FORWARD -m comment --comment "kube-router netpol - TEMCG2JMHZYE7H7T" -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-FORWARD -m comment --comment "rule to explicitly ACCEPT traffic that comply to network policies"` +
		` -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-ROUTER-FORWARD -m mark ! --mark 0x10000/0x10000 -j REJECT
COMMIT
`
}

func hostFirewalls() []hostFirewall {
	list := []hostFirewall{
		nftFile("firewalld", "inet firewalld", "inet firewalld filter_FORWARD", "inet firewalld filter_INPUT"),
		nftFile("firewalld-drop", "inet firewalld", "inet firewalld filter_FORWARD", "inet firewalld filter_INPUT"),
		nftText("case 39", "inet hostfw",
			`table inet hostfw { chain forward { type filter hook forward priority 10; policy accept;
			ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop;
			reject with icmpx type admin-prohibited; }; }`, "inet hostfw forward"),
		nftText("Red Hat's nftables", "inet nftables_svc", `table inet nftables_svc {
			chain allow { ct state established,related accept; meta l4proto { icmp, ipv6-icmp } accept;
				iifname "lo" accept; tcp dport 22 accept; }
			chain INPUT { type filter hook input priority 20; policy accept; jump allow;
				reject with icmpx type port-unreachable; }
			chain FORWARD { type filter hook forward priority 20; policy accept; jump allow;
				reject with icmpx type host-unreachable; }; }`,
			"inet nftables_svc FORWARD", "inet nftables_svc INPUT"),
		nftText("Arch's nftables", "inet filter", `table inet filter {
			chain input { type filter hook input priority 0; policy drop; ct state invalid drop;
				ct state { established, related } accept; iif "lo" accept; ip protocol icmp accept;
				meta l4proto ipv6-icmp accept; tcp dport 22 accept; meta pkttype host limit rate 5/second
				counter reject with icmpx type admin-prohibited; counter; };
			chain forward { type filter hook forward priority 0; policy drop; }; }`, "inet filter forward",
			"inet filter input"),
		nftText("a map of verdicts, early", "inet early", `table inet early { chain pass { type filter hook forward `+
			`priority -200; policy drop; ct state vmap { established : accept, related : accept, invalid : drop }; `+
			`iifname vmap { "eth0" : jump lan, "lo" : accept }; }; chain lan { ip daddr 203.0.113.0/24 accept; }; }`,
			"inet early pass"),
		nftText("only new ones, late", "inet late", `table inet late { chain pass { type filter hook forward `+
			`priority 300; policy accept; ct state new drop; }; }`, "inet late pass"),
		nftText("all but one link", "inet but", `table inet but { chain pass { type filter hook forward priority 0; `+
			`policy accept; iifname != { "lo", "br-lan" } meta l4proto { tcp, udp } goto away; }; chain away { log; `+
			`return; }; chain pass2 { type filter hook forward priority 1; policy accept; iifname "eth0" drop; }; }`,
			"inet but pass2"),
	}
	for _, flavour := range []string{"nft", "legacy"} {
		forward, input := []string{"ip filter FORWARD", "ip6 filter FORWARD"}, []string{"ip filter INPUT"}
		if flavour == "legacy" {
			forward, input = []string{"iptables-legacy FORWARD", "ip6tables-legacy FORWARD"},
				[]string{"iptables-legacy INPUT"}
		}
		list = append(list, restored("ufw", flavour, ufw, slices.Concat(forward, input)...),
			restored("Red Hat's iptables", flavour, redHat, slices.Concat(forward, input)...),
			restored("Docker", flavour, docker, forward...), restored("kube-router's leftovers", flavour,
				kubeRouter, forward...))
	}
	return list
}

// Firewalls as distributions and programs leave them, played in a node's namespace: pods pass them within a second,
// also by the tunnel, status names the chains, and what was there is untouched when they are left.
func TestFirewallsOfHosts(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "nft", "iptables-nft", "iptables-legacy")
	c := newClusterWith(t, routes.VXLAN)
	m := c.nodes[0]
	near, other, far := m.mustAdd("near"), m.mustAdd("other"), c.nodes[1].mustAdd("far")
	for _, p := range []*pod{near, other, far} {
		tell(p.ns)
	}
	for _, f := range hostFirewalls() {
		t.Run(f.name, func(t *testing.T) {
			dropsPackets(t, f)
			f.load(t, m.ns)
			for fam := range 2 {
				for _, way := range [][2]*pod{{near, other}, {near, far}, {far, near}} {
					testnet.Eventually(t, 5*time.Second, func() error {
						conn, err := way[0].ns.Dial("tcp", netip.AddrPortFrom(way[1].ips[fam], 80).String(),
							200*time.Millisecond)
						if err != nil {
							return err
						}
						return conn.Close()
					})
				}
			}
			want := "accepted in its chains " + strings.Join(slices.Sorted(slices.Values(f.chains)), ", ")
			testnet.Eventually(t, 5*time.Second, func() error {
				if facts := strings.Join(m.net.Facts(), "\n"); !strings.Contains(facts, want) {
					return fmt.Errorf("status says %s, want %s", facts, want)
				}
				return nil
			})
			if said, _ := m.bad.Load("podnetwork firewall"); said != nil && fmt.Sprint(said) != "[]" {
				t.Errorf("reported is %v", said)
			}
			f.unload(t, m.ns)
			testnet.Eventually(t, 15*time.Second, func() error {
				if facts := strings.Join(m.net.Facts(), "\n"); strings.Contains(facts, "accepted in its chains") {
					return fmt.Errorf("status still says %s", facts)
				}
				return nil
			})
		})
	}
}

// dropsPackets fails unless the firewall by itself drops what a node forwards.
func dropsPackets(t *testing.T, f hostFirewall) {
	t.Helper()
	a, node, b := testnet.New(t, "a"), testnet.New(t, "plain"), testnet.New(t, "b")
	testnet.Veth(a, "eth0", node, "eth0")
	testnet.Veth(node, "wy1", b, "eth0")
	a.Addr("eth0", "192.0.2.2/24")
	node.Addr("eth0", "192.0.2.1/24")
	node.Addr("wy1", "198.51.100.1/24")
	b.Addr("eth0", "198.51.100.2/24")
	a.Route("0.0.0.0/0", "192.0.2.1")
	b.Route("0.0.0.0/0", "198.51.100.1")
	node.Router()
	tell(b)
	pass := func() bool {
		conn, err := a.Dial("tcp", "198.51.100.2:80", 200*time.Millisecond)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	testnet.Eventually(t, 10*time.Second, func() error { // links carry packets a moment after they are set up
		if !pass() {
			return fmt.Errorf("the router passes nothing")
		}
		return nil
	})
	f.load(t, node)
	if pass() {
		t.Fatalf("%s drops nothing", f.name)
	}
}

// What the host drops by address stays dropped, and the very rule is named, by Event and status; rules for single ports
// are named in status. A table that another program owns cannot be changed: its rule is named as well.
func TestRulesOfHostsAreNamed(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "nft")
	c := newCluster(t)
	m := c.nodes[0]
	near, other := m.mustAdd("near"), m.mustAdd("other")
	tell(other.ns)
	said := func() string { p, _ := m.bad.Load("podnetwork firewall"); return fmt.Sprint(p) }
	named := func(want string) {
		t.Helper()
		testnet.Eventually(t, 5*time.Second, func() error {
			if facts := strings.Join(m.net.Facts(), "\n"); !strings.Contains(said(), want) ||
				!strings.Contains(facts, want) {
				return fmt.Errorf("reported is %s, status says %s; want %s", said(), facts, want)
			}
			return nil
		})
	}
	m.ns.Run("nft", `table ip mine { chain pass { type filter hook forward priority 5; policy accept; ip saddr `+
		`10.244.0.0/16 drop; }; }`)
	named(`ip mine pass handle 2: ip saddr 10.244.0.0/16 drop`)
	if _, err := near.ns.Dial("tcp", netip.AddrPortFrom(other.ips[0], 80).String(), 300*time.Millisecond); err == nil {
		t.Error("what the host drops by address passes")
	}
	m.ns.Run("nft", `delete table ip mine; table inet mine { set bad { type ipv4_addr; flags interval; elements = { `+
		`10.244.1.0/24 }; }; chain pass { type filter hook forward priority 5; policy accept; tcp dport 25 reject; `+
		`ip saddr @bad reject; }; }`)
	named("ip saddr @bad reject")
	if facts := strings.Join(m.net.Facts(), "\n"); !strings.Contains(facts, "dport 0x0019 reject") &&
		!strings.Contains(facts, "dport 25 reject") {
		t.Errorf("status says %s", facts)
	}
	m.ns.Run("nft", "delete table inet mine")
	testnet.Eventually(t, 5*time.Second, func() error {
		if said() != "[]" {
			return fmt.Errorf("still reported: %s", said())
		}
		return nil
	})

	owner := exec.Command("nft", "-i")
	in, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ns.Do(owner.Start); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = owner.Wait() }()
	if _, err := fmt.Fprintln(in, `table inet owned { flags owner; chain pass { type filter hook forward priority `+
		`10; policy accept; ct state established accept; reject with icmpx type admin-prohibited; }; }`); err != nil {
		t.Fatal(err)
	}
	named("inet owned pass handle ")
	if !strings.Contains(said(), "reject (the chain cannot be changed: ") {
		t.Errorf("reported is %s", said())
	}
}

// Others undo what the node needs: forwarding by sysctl, a pod's link and the tunnel set down. All is back at once.
func TestOthersUndoTheHost(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, routes.VXLAN)
	m := c.nodes[0]
	near, other, far := m.mustAdd("near"), m.mustAdd("other"), c.nodes[1].mustAdd("far")
	tell(other.ns)
	tell(far.ns)
	link := m.net.leases.List()[0].HostLink
	for name, undo := range map[string]func(){
		"ip_forward": func() { m.ns.Sysctl("net/ipv4/ip_forward", "0") },
		"all/forwarding": func() {
			m.ns.Sysctl("net/ipv4/conf/all/forwarding", "0")
			m.ns.Sysctl("net/ipv6/conf/all/forwarding", "0")
		},
		"a link down":    func() { m.ns.Run("ip", "link", "set", link, "down") },
		"tunnel down":    func() { m.ns.Run("ip", "link", "set", routes.Device, "down") },
		"rp_filter":      func() { m.ns.Sysctl("net/ipv4/conf/all/rp_filter", "1") },
		"arp_ignore":     func() { m.ns.Sysctl("net/ipv4/conf/all/arp_ignore", "2") },
		"foreign routes": func() { m.ns.Run("sh", "-c", "ip route flush proto 87; ip -6 route flush proto 87") },
	} {
		undo()
		for f := range 2 {
			for _, to := range []*pod{other, far} {
				testnet.Eventually(t, 10*time.Second, func() error {
					conn, err := near.ns.Dial("tcp", netip.AddrPortFrom(to.ips[f], 80).String(), 300*time.Millisecond)
					if err != nil {
						return fmt.Errorf("after %s: %w", name, err)
					}
					return conn.Close()
				})
			}
		}
	}
}

// A port of VXLAN that a program or another device has is named, and another one may be set.
func TestAPortOfVXLANThatIsTaken(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, routes.VXLAN)
	m := c.nodes[0]
	said := func() string { p, _ := m.bad.Load("podnetwork tunnel"); return fmt.Sprint(p) }
	for name, take := range map[string]func() (free func()){
		"a program": func() func() {
			p := m.ns.ListenPacket("udp4", ":4789")
			return func() { p.Close() }
		},
		"another device": func() func() {
			m.ns.Run("ip", "link", "add", "vxlan_sys_4789", "type", "vxlan", "external", "dstport", "4789")
			m.ns.Run("ip", "link", "set", "vxlan_sys_4789", "up")
			return func() { m.ns.Run("ip", "link", "del", "vxlan_sys_4789") }
		},
	} {
		m.stop()
		m.ns.Run("ip", "link", "del", routes.Device)
		free := take()
		m.startWith(c.store, func() error {
			if !strings.Contains(said(), "UDP port 4789 is taken") {
				return fmt.Errorf("%s: reported is %s", name, said())
			}
			return nil
		})
		free()
		testnet.Eventually(t, 40*time.Second, func() error {
			if said() != "[]" {
				return fmt.Errorf("%s: still reported: %s", name, said())
			}
			return nil
		})
	}
	for _, m := range c.nodes {
		m.stop()
		m.vxlan = 8472
		m.start(c.store)
		if out := m.ns.Run("ip", "-d", "link", "show", routes.Device); !strings.Contains(out, "dstport 8472") {
			t.Errorf("the device is %s", out)
		}
	}
	near, far := m.mustAdd("near"), c.nodes[1].mustAdd("far")
	tell(far.ns)
	for f := range 2 {
		expectSeen(t, near.ns, far.ips[f], near.ips[f])
	}
	if out := m.ns.Run("nft", "list", "table", "ip", TableName); strings.Contains(out, "4789") ||
		!strings.Contains(out, "8472") {
		t.Errorf("the table is %s", out)
	}
}

// A tunnel that carries nothing is named with the node behind it, by Event, status and metric, until it carries again.
func TestATunnelThatCarriesNothing(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, routes.VXLAN)
	m := c.nodes[0]
	m.stop()
	m.probe = time.Second
	m.start(c.store)
	said := func() string { p, _ := m.bad.Load("podnetwork tunnels"); return fmt.Sprint(p) }
	testnet.Eventually(t, 10*time.Second, func() error {
		if ok, known := m.carries.Load("node2"); !known || ok != true {
			return fmt.Errorf("the metric says %v, %v", ok, known)
		}
		return nil
	})
	if said() != "[]" {
		t.Errorf("a sound tunnel: %s", said())
	}
	// A firewall that this node does not see.
	c.nodes[1].ns.Run("nft",
		"table ip between { chain pre { type filter hook prerouting priority -400; udp dport 4789 drop; }; }")
	testnet.Eventually(t, 20*time.Second, func() error {
		facts := strings.Join(m.net.Facts(), "\n")
		if !strings.Contains(said(), "VXLAN to node2: packets by the tunnel do not arrive") ||
			!strings.Contains(facts, "VXLAN carries nothing to 1 nodes that answer outside of it: node2") {
			return fmt.Errorf("reported is %s, status says %s", said(), facts)
		}
		return nil
	})
	if ok, _ := m.carries.Load("node2"); ok != false {
		t.Errorf("the metric says %v", ok)
	}
	c.nodes[1].ns.Run("nft", "delete table ip between")
	testnet.Eventually(t, 20*time.Second, func() error {
		if said() != "[]" {
			return fmt.Errorf("still reported: %s", said())
		}
		return nil
	})
	// A node that answers nothing is down, which is no matter of the tunnel.
	c.nodes[1].ns.Run("ip", "link", "set", "eth0", "down")
	time.Sleep(3 * time.Second)
	if said() != "[]" {
		t.Errorf("of a node that is away: %s", said())
	}
}
