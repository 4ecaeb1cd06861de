package cni

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/routes"
)

const (
	pairs  = 24
	stream = 500 * time.Millisecond
	talk   = 300 * time.Millisecond
)

// way is a client with a path to a server.
type way struct {
	name   string
	client *testnet.NS
	server netip.Addr
}

// contest compares Wayleave's path with a plain one.
type contest struct {
	name         string
	ours, theirs way
}

// packets compares CPU per byte and per request.
func packets(t *testing.T, page *result.Page) {
	bin := wayleaveCNI(t)
	contests := []contest{
		{"on one node: plain veths, routed", ours(t, bin, routes.Direct, true), plain(t, false, true)},
		{"between nodes: plain routes", ours(t, bin, routes.Direct, false), plain(t, false, false)},
		{"between nodes: plain VXLAN", ours(t, bin, routes.VXLAN, false), plain(t, true, false)},
	}
	rows := [][]string{{"path, against", "Wayleave, GB per CPU-second", "plain", "ratio",
		"Wayleave, requests per CPU-second", "plain", "ratio"}}
	for i, c := range contests {
		fmt.Fprintf(os.Stderr, "bench/cni: packets %s (%d of %d)\n", c.name, i+1, len(contests))
		var bytes, requests [2][]float64
		var byteRatio, requestRatio []float64
		for pair := range pairs {
			var b, r [2]float64
			for k := range 2 {
				k = (k + pair) % 2
				w := []way{c.ours, c.theirs}[k]
				b[k], r[k] = measure(t, w, "81", stream, sink), measure(t, w, "82", talk, pingPong)
				bytes[k], requests[k] = append(bytes[k], b[k]), append(requests[k], r[k])
			}
			byteRatio, requestRatio = append(byteRatio, b[0]/b[1]), append(requestRatio, r[0]/r[1])
		}
		row := []string{c.name}
		for _, x := range []struct {
			v     [2][]float64
			ratio []float64
			unit  float64
		}{{bytes, byteRatio, 1e9}, {requests, requestRatio, 1}} {
			row = append(row, result.Number(result.Median(x.v[0])/x.unit), result.Number(result.Median(x.v[1])/x.unit),
				result.Number(result.Median(x.ratio)))
		}
		rows = append(rows, row)
	}
	page.Text("## Packets\n\nPod to pod by TCP, %d interleaved pairs of %s streams and %s of 1-byte requests; CPU is "+
		"all time in which the machine was not idle. The plain side has neither nftables nor connection tracking.",
		pairs, stream, talk)
	page.Table(rows)
	page.Text("Target: 0.95. Where the time goes (perf): connection tracking, which Services need, is about half of " +
		"the difference to plain veths (the plain side with only tracking reaches 0.93); then the check of source " +
		"addresses. With VXLAN it is also the rules of table 87, by which pods reach nodes behind routers through " +
		"the tunnel: the kernel evaluates them for each route lookup. They exist only while a node is reached by " +
		"VXLAN.")
}

// measure returns how much was done per CPU-second.
func measure(t *testing.T, w way, port string, d time.Duration, fn func(net.Conn, time.Time) (float64, error)) float64 {
	t.Helper()
	c, err := w.client.Dial("tcp", net.JoinHostPort(w.server.String(), port), 2*time.Second)
	if err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	defer c.Close()
	before := busy(t)
	n, err := fn(c, time.Now().Add(d))
	cpu := busy(t) - before
	if err != nil || n == 0 || cpu == 0 {
		t.Fatalf("%s: %v, %v in %v of CPU", w.name, err, n, cpu)
	}
	return n / cpu
}

func sink(c net.Conn, until time.Time) (n float64, err error) {
	buf := make([]byte, 128<<10)
	for time.Now().Before(until) {
		k, err := c.Write(buf)
		n += float64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func pingPong(c net.Conn, until time.Time) (n float64, err error) {
	buf := make([]byte, 1)
	for time.Now().Before(until) {
		if _, err := c.Write(buf); err != nil {
			return n, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// serve answers both kinds of requests in a namespace.
func serve(ns *testnet.NS) {
	ns.Serve("tcp", ":81", func(c net.Conn) {
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	ns.Serve("tcp", ":82", func(c net.Conn) {
		buf := make([]byte, 1)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
}

// busy returns the seconds that the machine's CPUs have worked, from /proc/stat.
func busy(t *testing.T) float64 {
	t.Helper()
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	var user, nice, system, idle, iowait, irq, softirq float64
	if _, err := fmt.Sscanf(line, "cpu %g %g %g %g %g %g %g", &user, &nice, &system, &idle, &iowait, &irq,
		&softirq); err != nil {
		t.Fatalf("/proc/stat: %v", err)
	}
	return (user + nice + system + irq + softirq) / 100
}

// ours is a path through Wayleave: two pods on two nodes, or on one.
func ours(t *testing.T, bin string, mode routes.Mode, local bool) way {
	t.Helper()
	a, b := testnet.New(t, "node1"), testnet.New(t, "node2")
	testnet.Veth(a, "eth0", b, "eth0")
	var nodes []*model.Node
	for i, ns := range []*testnet.NS{a, b} {
		ns.Addr("eth0", fmt.Sprintf("172.30.0.%d/24", i+1))
		ns.Run("ip", "route", "add", "default", "dev", "eth0")
		nodes = append(nodes, &model.Node{Name: fmt.Sprintf("node%d", i+1),
			InternalIPs: []netip.Addr{netip.AddrFrom4([4]byte{172, 30, 0, byte(i + 1)})},
			PodCIDRs:    []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1))}})
	}
	store := newStore(t, nodes...)
	first, second := agent(t, a, "node1", store, mode, bin), agent(t, b, "node2", store, mode, bin)
	if local {
		second = first
	}
	client, server := testnet.New(t, "client"), testnet.New(t, "server")
	if _, _, err := first.call("ADD", "client", client); err != nil {
		t.Fatal(err)
	}
	out, _, err := second.call("ADD", "server", server)
	if err != nil {
		t.Fatal(err)
	}
	serve(server)
	to, err := address(out)
	if err != nil {
		t.Fatal(err)
	}
	return way{"Wayleave " + string(mode), client, to}
}

// plain is a path that the kernel provides for a pair of pods, without Wayleave.
func plain(t *testing.T, vxlan, local bool) way {
	t.Helper()
	a, b := testnet.New(t, "plain1"), testnet.New(t, "plain2")
	testnet.Veth(a, "eth0", b, "eth0")
	client, server := testnet.New(t, "client"), testnet.New(t, "server")
	for i, x := range []struct{ node, other, pod *testnet.NS }{{a, b, client}, {b, a, server}} {
		me, peer := i+1, 2-i
		x.node.Router()
		x.node.Addr("eth0", fmt.Sprintf("172.30.0.%d/24", me))
		node := x.node
		if local {
			node = a
		}
		host := fmt.Sprintf("pod%d", me)
		testnet.Veth(x.pod, "eth0", node, host)
		ip := fmt.Sprintf("10.244.%d.2", me)
		x.pod.Addr("eth0", ip+"/32")
		podMAC, hostMAC := fmt.Sprintf("02:00:00:00:01:%02x", me), "02:00:00:00:02:01"
		x.pod.Run("ip", "link", "set", "eth0", "address", podMAC)
		node.Run("ip", "link", "set", host, "address", hostMAC)
		x.pod.Run("ip", "neigh", "add", "169.254.1.1", "lladdr", hostMAC, "dev", "eth0", "nud", "permanent")
		x.pod.Run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
		node.Run("ip", "route", "add", ip+"/32", "dev", host)
		node.Run("ip", "neigh", "add", ip, "lladdr", podMAC, "dev", host, "nud", "permanent")
		switch {
		case local:
		case vxlan:
			mac := func(n int) string { return fmt.Sprintf("02:00:00:00:00:%02x", n) }
			node.Run("ip", "link", "add", "vx0", "address", mac(me), "mtu", "1450", "type", "vxlan", "id", "1",
				"dstport", "4789", "local", fmt.Sprintf("172.30.0.%d", me), "nolearning")
			node.Run("ip", "addr", "add", fmt.Sprintf("10.9.0.%d/24", me), "dev", "vx0")
			node.Run("ip", "link", "set", "vx0", "up")
			node.Run("ip", "neigh", "add", fmt.Sprintf("10.9.0.%d", peer), "lladdr", mac(peer), "dev", "vx0",
				"nud", "permanent")
			node.Run("bridge", "fdb", "append", mac(peer), "dev", "vx0", "dst", fmt.Sprintf("172.30.0.%d", peer))
			node.Run("ip", "route", "add", fmt.Sprintf("10.244.%d.0/24", peer), "via", fmt.Sprintf("10.9.0.%d", peer))
			x.pod.Run("ip", "link", "set", "eth0", "mtu", "1450")
		default:
			node.Run("ip", "route", "add", fmt.Sprintf("10.244.%d.0/24", peer), "via", fmt.Sprintf("172.30.0.%d", peer))
		}
	}
	serve(server)
	return way{"plain", client, netip.MustParseAddr("10.244.2.2")}
}
