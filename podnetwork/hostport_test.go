package podnetwork

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/podnetwork/routes"
)

// addWith is ADD with a runtimeConfig.
func (m *machine) addWith(id, runtimeConfig string) (*pod, error) {
	p := &pod{id: id, ns: testnet.New(m.t, id), m: m}
	out, err := m.plugin(strings.Replace(conf, "{", `{"runtimeConfig":`+runtimeConfig+`,`, 1), p.env("ADD")...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	for _, l := range m.net.leases.List() {
		if l.Container == id {
			p.ips = l.IPs
		}
	}
	return p, nil
}

// names has every pod tell its name by TCP and UDP.
func names(ns *testnet.NS, name string) {
	ns.Serve("tcp", ":8080", func(c net.Conn) { fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr()) })
	u := ns.ListenPacket("udp", ":8080")
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s\n", name, from), from)
		}
	}()
}

func ask(ns *testnet.NS, network, to string) (string, netip.Addr, error) {
	c, err := ns.Dial(network, to, time.Second)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", netip.Addr{}, err
	}
	if _, err := c.Write([]byte("who")); err != nil {
		return "", netip.Addr{}, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	name, from, _ := strings.Cut(strings.TrimSpace(line), " ")
	ap, _ := netip.ParseAddrPort(from)
	return name, ap.Addr().Unmap(), err
}

// TestHostPorts: mappings of all addresses, of one and of 127.0.0.1; from outside,
// another node, the node itself, other pods and the pod itself; they go with the pod,
// and come back after a flush.
func TestHostPorts(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := c.nodes[0]
	all, err := m.addWith("all",
		`{"portMappings":[{"hostPort":8000,"containerPort":8080,"protocol":"tcp"},{"hostPort":8000,`+
			`"containerPort":8080,"protocol":"udp"},{"hostPort":0,"containerPort":9}]}`)
	if err != nil {
		t.Fatal(err)
	}
	one, err := m.addWith("one",
		`{"portMappings":[{"hostPort":8001,"containerPort":8080,"protocol":"TCP","hostIP":"172.30.0.11"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	local, err := m.addWith("local", `{"portMappings":[{"hostPort":8001,"containerPort":8080,"hostIP":"127.0.0.1"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*pod{all, one, local} {
		names(p.ns, p.id)
	}
	far := c.nodes[1].mustAdd("far")
	rows := func() {
		t.Helper()
		for _, row := range []struct {
			from *testnet.NS
			to   string
			want string // empty for nobody
			udp  bool
			seen string
		}{
			{c.outside, "172.30.0.11:8000", "all", true, "172.30.0.99"},
			{c.outside, "[fd00:30::11]:8000", "all", true, "fd00:30::99"},
			{c.nodes[1].ns, "172.30.0.11:8000", "all", true, "172.30.0.12"},
			{far.ns, "172.30.0.11:8000", "all", true, far.ips[0].String()},
			{far.ns, "[fd00:30::11]:8000", "all", true, far.ips[1].String()},
			{m.ns, "172.30.0.11:8000", "all", true, ""},
			{m.ns, "127.0.0.1:8000", "all", true, ""},
			{one.ns, "172.30.0.11:8000", "all", true, one.ips[0].String()},
			{all.ns, "172.30.0.11:8000", "all", true, ""},
			{all.ns, "[fd00:30::11]:8000", "all", true, ""},
			{c.outside, "172.30.0.11:8001", "one", false, ""},
			{m.ns, "172.30.0.11:8001", "one", false, ""},
			{m.ns, "127.0.0.1:8001", "local", false, ""},
			{c.outside, "[fd00:30::11]:8001", "", false, ""},
			{c.outside, "172.30.0.12:8000", "", false, ""},
			{c.outside, "172.30.0.11:9", "", false, ""},
		} {
			for _, network := range []string{"tcp", "udp"} {
				if network == "udp" && !row.udp {
					continue
				}
				got, seen, err := ask(row.from, network, row.to)
				if got != row.want || (row.want == "") != (err != nil) || row.seen != "" && row.seen != seen.String() {
					t.Errorf("from %s by %s to %s: %q answered and saw %s, %v; want %q, %s", row.from.Name, network,
						row.to, got, seen, err, row.want, row.seen)
				}
			}
		}
	}
	rows()
	m.ns.Run("nft", "flush", "ruleset")
	testnet.Promptly(t, time.Second,
		func() error { _, _, err := ask(c.outside, "tcp", "172.30.0.11:8000"); return err })
	rows()
	m.stop()
	m.start(c.store)
	rows()
	taken, err := m.addWith("taken", `{"portMappings":[{"hostPort":8001,"containerPort":1,"hostIP":"172.30.0.11"}]}`)
	if err == nil || !strings.Contains(err.Error(), "TCP 172.30.0.11 port 8001 is leased to pod default/one") {
		t.Errorf("a port that is taken: %v, %v", taken, err)
	}
	udp, err := c.outside.Dial("udp", "172.30.0.11:8000", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if _, err := m.plugin(conf, all.env("DEL")...); err != nil {
		t.Fatal(err)
	}
	if got, _, err := ask(c.outside, "tcp", "172.30.0.11:8000"); err == nil {
		t.Errorf("%s still answers", got)
	}
	again, err := m.addWith("again", `{"portMappings":[{"hostPort":8000,"containerPort":8080,"protocol":"udp"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	names(again.ns, "again")
	if got, _, err := ask(c.outside, "udp", "172.30.0.11:8000"); got != "again" {
		t.Errorf("%q answered, %v", got, err)
	}
}

// Pods must not reach what listens on the node's 127.0.0.1, though route_localnet is
// set for host ports.
func TestLocalhostStaysLocal(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	p, err := m.addWith("p", `{"portMappings":[{"hostPort":8000,"containerPort":8080}]}`)
	if err != nil {
		t.Fatal(err)
	}
	l := m.ns.Listen("tcp", "127.0.0.1:99")
	go func() {
		if c, err := l.Accept(); err == nil {
			t.Errorf("%s came in", c.RemoteAddr())
			_ = c.Close()
		}
	}()
	p.ns.Run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
	p.ns.Sysctl("net/ipv4/conf/all/route_localnet", "1")
	p.ns.Run("ip", "route", "add", "127.0.0.1/32", "via", "169.254.1.1", "dev", "eth0", "onlink")
	if conn, err := p.ns.Dial("tcp", "127.0.0.1:99", 300*time.Millisecond); err == nil {
		_ = conn.Close()
		t.Error("a pod is connected with the node's 127.0.0.1")
	}
}

// ports is a runtime configuration with port mappings.
func ports(mappings string) string { return `{"portMappings":[` + mappings + `]}` }

// Addresses, MACs and rates that are asked for are what the pod gets.
func TestWishes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	m := c.nodes[0]
	p, err := m.addWith("p",
		`{"ips":["10.244.1.77/24"],"mac":"02:11:22:33:44:55","bandwidth":{"ingressRate":8000000,`+
			`"ingressBurst":800000,"egressRate":4000000}}`)
	if err != nil {
		t.Fatal(err)
	}
	if p.ips[0].String() != "10.244.1.77" || !p.ips[1].Is6() {
		t.Errorf("addresses are %v", p.ips)
	}
	if out := p.ns.Run("ip", "link", "show", "eth0"); !strings.Contains(out, "02:11:22:33:44:55") {
		t.Errorf("link is %s", out)
	}
	tell(p.ns)
	expectSeen(t, c.nodes[1].ns, p.ips[0], netip.MustParseAddr("172.30.0.12"))
	serveTransfers(p.ns)
	start := time.Now()
	if err := fetch(m.ns, p.ips[0]); err != nil { // 1 MB at 4 Mbit/s, less a burst
		t.Fatal(err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("1 MB at 4 Mbit/s took only %s", took)
	}
	serveTransfers(m.ns)
	start = time.Now()
	if err := fetch(p.ns, netip.MustParseAddr("172.30.0.11")); err != nil { // at 8 Mbit/s
		t.Fatal(err)
	}
	if took := time.Since(start); took < 500*time.Millisecond {
		t.Errorf("1 MB at 8 Mbit/s took only %s", took)
	}
	for config, want := range map[string]string{
		`{"ips":["10.244.1.77"]}`:     "10.244.1.77 is leased to pod default/p",
		`{"ips":["10.9.9.9"]}`:        "10.9.9.9 is in none of the node's pod networks",
		`{"ips":["x"]}`:               `runtimeConfig.ips: \"x\" is not an IP address`,
		`{"mac":"33:33:00:00:00:01"}`: "runtimeConfig.mac",
		`{"bandwidth":{"ingressRate":1}}`: "runtimeConfig.bandwidth.ingressRate: " +
			"1 is too little",
		ports(`{"hostPort":70000,"containerPort":1}`): "runtimeConfig.portMappings[0].hostPort: " +
			"70000 is not a port",
		ports(`{"hostPort":1,"containerPort":0}`):                "portMappings[0].containerPort: 0 is not a port",
		ports(`{"hostPort":1,"containerPort":1,"protocol":"x"}`): "portMappings[0].protocol",
		ports(`{"hostPort":1,"containerPort":1,"hostIP":"::1"}`): "::1 cannot be mapped",
		ports(`{"hostPort":1,"containerPort":1},{"hostPort":1,"containerPort":2}`): "portMappings[1].hostPort: " +
			"TCP * port 1 is there twice",
	} {
		if _, err := m.addWith("bad", config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", config, err, want)
		}
	}
	if n := len(m.net.leases.List()); n != 1 {
		t.Errorf("%d leases are there", n)
	}
}

// The text of the table, which people read, is what the program nft takes.
func TestTheTextIsAccepted(t *testing.T) {
	testnet.Need(t, "nft")
	ns := testnet.New(t, "nft")
	for _, f := range nft.Families() {
		file := filepath.Join(t.TempDir(), "text")
		if err := os.WriteFile(file, []byte(table(f, routes.Port).Text(nil, nil)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := ns.Try("nft", "-f", file); err != nil {
			t.Errorf("%s: %v: %s", f, err, out)
		}
	}
}
