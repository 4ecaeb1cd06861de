package firewall_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/kernel/iptables"
	"wayleave.dev/kernel/nft"
)

// router is a node between two hosts, with a socket behind it.
type router struct {
	t              *testing.T
	from, node, to *testnet.NS
	heard          map[uint16]chan string
}

var ports = []uint16{53, 80, 4789}

func newRouter(t *testing.T) *router {
	t.Helper()
	r := &router{t: t, from: testnet.New(t, "from"), node: testnet.New(t, "node"), to: testnet.New(t, "to"),
		heard: map[uint16]chan string{}}
	testnet.Veth(r.from, "eth0", r.node, "eth0")
	testnet.Veth(r.node, "wy1", r.to, "eth0")
	r.from.Addr("eth0", "192.0.2.2/24")
	r.node.Addr("eth0", "192.0.2.1/24")
	r.node.Addr("wy1", "198.51.100.1/24")
	r.to.Addr("eth0", "198.51.100.2/24")
	r.from.Route("0.0.0.0/0", "192.0.2.1")
	r.to.Route("0.0.0.0/0", "198.51.100.1")
	r.node.Router()
	for _, port := range ports {
		p, heard := r.to.ListenPacket("udp4", fmt.Sprintf("198.51.100.2:%d", port)), make(chan string, 100)
		r.heard[port] = heard
		go func() {
			buf := make([]byte, 100)
			for {
				n, _, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				heard <- string(buf[:n])
			}
		}()
	}
	return r
}

// passes says whether a new flow to a port gets through. Where it is expected to, it has much time for that.
func (r *router) passes(port uint16, id string, expected bool) bool {
	r.t.Helper()
	c, err := r.from.Dial("udp4", fmt.Sprintf("198.51.100.2:%d", port), time.Second)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	wait := 20 * time.Millisecond
	if expected {
		wait = 5 * time.Second
	}
	if _, err := c.Write([]byte(id)); err != nil {
		return false // rejected already
	}
	timer := time.After(wait)
	for {
		select {
		case got := <-r.heard[port]:
			if got == id {
				return true
			}
		case <-timer:
			return false
		}
	}
}

func packet(port uint16) firewall.Packet {
	return firewall.Packet{In: "eth0", Out: "wy1", Proto: 17, Dport: port, Src: netip.MustParseAddr("192.0.2.2"),
		Dst: netip.MustParseAddr("198.51.100.2")}
}

// judge compares what a firewall is said to do with what the kernel does.
func (r *router) judge(w firewall.Firewall, what string, n int) {
	r.t.Helper()
	for _, port := range ports {
		found, err := w.Admit(r.t.Context(), firewall.Pass{Owner: "test", Hook: firewall.Forward,
			Samples: []firewall.Packet{packet(port)}})
		if err != nil {
			r.t.Fatalf("%v\n%s", err, what)
		}
		expected := len(found.Accepted) == 0
		if len(found.Perhaps) > 0 {
			r.t.Fatalf("all is known of the packet, and %v may drop it\n%s", found.Perhaps, what)
		}
		if got := r.passes(port, fmt.Sprintf("%d %d", n, port), expected); got != expected {
			r.t.Fatalf("port %d: passes %v, said was %v (%v)\n%s", port, got, expected, found, what)
		}
	}
}

func pick(rnd *rand.Rand, list ...string) string { return list[rnd.IntN(len(list))] }

// nftRules makes a table at random: conditions as people write them, in chains that call each other.
func nftRules(rnd *rand.Rand) string {
	condition := func() string {
		return pick(rnd, `iifname "eth0"`, `iifname "wy*"`, `iifname != "lo"`, `oifname "wy*"`,
			`oifname { "wy1", "docker0" }`, `iif "eth0"`, `iif != "lo"`, `oif "wy1"`,
			"ip saddr 192.0.2.2", "ip saddr 192.0.2.0/24", "ip saddr 192.0.2.0/25", "ip saddr != 192.0.2.0/30",
			"ip saddr 10.0.0.0/8", "ip daddr @some", "ip daddr != @some", "ip saddr @none",
			"ip daddr { 198.51.100.2, 203.0.113.1 }",
			"ip saddr 192.0.2.1-192.0.2.9", "ip saddr { 10.0.0.0/8, 192.0.2.0/28 }", "ip protocol udp",
			"meta l4proto tcp", "meta l4proto { tcp, udp }", "meta nfproto ipv4", "meta nfproto ipv6",
			"meta protocol ip",
			"udp dport 53", "udp dport { 53, 80 }", "udp dport 50-100", "udp dport != 4789", "tcp dport 53",
			"udp dport >= 80", "th dport 80",
			"ct state new", "ct state established,related", "ct state { established, new }", "ct state invalid",
			"ct state != invalid", "ct status dnat", "ct direction original", "meta mark 0", "meta mark & 0xff == 1",
			"fib daddr type local", "fib daddr type unicast", "meta pkttype host", "counter", "")
	}
	verdict := func(level int) string {
		list := []string{"accept", "drop", "reject", "return", "counter", "continue"}
		if level < 2 {
			list = append(list, fmt.Sprintf("jump c%d", level+1), fmt.Sprintf("goto c%d", level+1),
				fmt.Sprintf("ct state vmap { new : jump c%d, established : accept, invalid : drop }", level+1),
				fmt.Sprintf(`iifname vmap { "eth0" : goto c%d, "lo" : accept }`, level+1),
				fmt.Sprintf("ip saddr vmap { 192.0.2.0/26 : jump c%d, 203.0.113.0/24 : drop }", level+1),
				"udp dport vmap { 50-60 : drop, 80-90 : accept }",
				fmt.Sprintf("udp dport vmap { 53 : accept, 80 : drop, 4789 : jump c%d }", level+1))
		}
		return pick(rnd, list...)
	}
	var b strings.Builder
	family := pick(rnd, "ip", "inet")
	fmt.Fprintf(&b, "table %s drawn {\nset some { type ipv4_addr; flags interval; elements = { 198.51.100.0/26, "+
		"203.0.113.7 }; }\nset none { type ipv4_addr; }\n", family)
	for level := 2; level >= 0; level-- {
		name, head := fmt.Sprintf("c%d", level), ""
		if level == 0 {
			name, head = "base", fmt.Sprintf("type filter hook forward priority %d; policy %s;", rnd.IntN(200)-100,
				pick(rnd, "accept", "accept", "drop"))
		}
		fmt.Fprintf(&b, "chain %s { %s\n", name, head)
		for range rnd.IntN(4) {
			fmt.Fprintf(&b, "%s %s %s\n", condition(), condition(), verdict(level))
		}
		b.WriteString("}\n")
	}
	return b.String() + "}"
}

// What the walk says of nftables is what the kernel does, for tables made at random and a packet of which all is known.
func TestTheWalkIsTheKernelsInNftables(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "nft")
	r := newRouter(t)
	k, err := nft.NewKernel(r.node.FD())
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for n := range 300 {
		text := nftRules(rand.New(rand.NewPCG(15, uint64(n))))
		if _, err := r.node.Try("nft", text); err != nil {
			refused++ // two conditions that exclude each other
			continue
		}
		r.judge(k, text, n)
		r.node.Run("sh", "-c", "nft delete table ip drawn 2>/dev/null || nft delete table inet drawn")
	}
	if refused > 150 {
		t.Errorf("nft refused %d of 300 tables", refused)
	}
}

// legacyRules makes a table filter at random.
func legacyRules(rnd *rand.Rand) string {
	condition := func() string {
		return pick(rnd, "-i eth0", "-i wy+", "! -i lo", "-o wy+", "! -o docker0", "-s 192.0.2.2/32", "-s 192.0.2.0/24",
			"! -s 10.0.0.0/8", "-d 198.51.100.0/26", "! -d 198.51.100.2/32",
			"-p udp", "-p tcp", "! -p tcp", "-p udp -m udp --dport 53", "-p udp -m udp ! --dport 53",
			"-p udp -m udp --dport 50:100", "-p udp -m multiport --dports 53,80",
			"-m conntrack --ctstate NEW", "-m conntrack --ctstate RELATED,ESTABLISHED",
			"-m conntrack ! --ctstate INVALID", "-m state --state NEW,ESTABLISHED", "-m mark --mark 0x1/0xff",
			"-m mark ! --mark 0x10000/0x10000",
			`-m comment --comment "it says -j DROP"`, "")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD %s [0:0]\n:OUTPUT ACCEPT [0:0]\n:C1 - [0:0]\n:C2 - [0:0]\n",
		pick(rnd, "ACCEPT", "ACCEPT", "DROP"))
	for level, chain := range []string{"FORWARD", "C1", "C2"} {
		for range 1 + rnd.IntN(4) {
			targets := []string{"-j ACCEPT", "-j DROP", "-j REJECT --reject-with icmp-port-unreachable", "-j RETURN",
				`-j MARK --set-xmark 0x0/0x0`, ""}
			if level < 2 {
				targets = append(targets, fmt.Sprintf("-j C%d", level+1), fmt.Sprintf("-g C%d", level+1))
			}
			target := pick(rnd, targets...)
			if strings.HasPrefix(target, "-j MARK") {
				target = "" // its table is another
			}
			fmt.Fprintf(&b, "-A %s %s %s\n", chain, condition(), target)
		}
	}
	return b.String() + "COMMIT\n"
}

// The same of iptables-legacy.
func TestTheWalkIsTheKernelsInLegacyIptables(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "iptables-legacy")
	r := newRouter(t)
	lock := filepath.Join(t.TempDir(), "lock")
	k, err := iptables.NewKernel(r.node.FD(), iptables.Legacy)
	if err != nil {
		t.Fatal(err)
	}
	k.LockFile = lock
	for n := range 150 {
		text := legacyRules(rand.New(rand.NewPCG(39, uint64(n))))
		if _, err := r.node.Try("sh", "-c", "XTABLES_LOCKFILE="+lock+" iptables-legacy-restore <<'EOF'\n"+text+
			"EOF"); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		r.judge(iptables.Firewall{Kernel: k}, text, n)
	}
}
