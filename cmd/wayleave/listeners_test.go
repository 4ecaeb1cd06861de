package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/agent/ingress"
	"wayleave.dev/dns"
	dnsschema "wayleave.dev/dns/schema"
	"wayleave.dev/internal/hostile"
	"wayleave.dev/internal/listeners"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/wireguard"
	"wayleave.dev/loadbalancer/peers"
	"wayleave.dev/model"
	plan "wayleave.dev/podnetwork/wireguard"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
)

// listenerTable is the table of docs/security.md.
func listenerTable(t *testing.T) []listeners.Row {
	t.Helper()
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := listeners.Parse(string(page))
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// What listens on a node is in the table of docs/security.md, and what the table names listens. Unix sockets are
// compared by their names in the program, since a test cannot have the folders of a node; the demo reads them.
func TestTheTableOfListenersIsWhole(t *testing.T) {
	r := newNodeRig(t)
	r.serveDNS()
	r.serveProxy()
	r.node.Run("ip", "link", "add", "wayleave-vxlan", "type", "vxlan", "id", "1", "dstport", "4789")
	r.node.Run("ip", "link", "set", "wayleave-vxlan", "up")
	r.node.ListenPacket("udp", ":51871") // as WireGuard
	witness := &wireguard.Witness{NSFD: r.node.FD()}
	defer witness.Close()
	if err := witness.Look("wayleave-vxlan", nil, nil); err != nil {
		t.Fatal(err)
	}
	rows := listenerTable(t)
	var network []listeners.Row
	var paths []string
	for _, row := range rows {
		switch row.Kind {
		case "unix":
			paths = append(paths, row.Host)
		case "raw": // opened for a moment, to one peer
		default:
			network = append(network, row)
		}
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		var sockets []listeners.Socket
		err := r.node.Do(func() (err error) {
			sockets, err = listeners.Read("/proc/thread-self/net")
			return err
		})
		if err != nil {
			return err
		}
		sockets = slices.DeleteFunc(sockets, func(s listeners.Socket) bool { return s.Kind == "unix" })
		unknown, missing := listeners.Compare(network, sockets)
		if len(unknown)+len(missing) > 0 {
			return fmt.Errorf("not in the table: %v; nothing listens: %v", unknown, missing)
		}
		return nil
	})
	named := socketNames(t)
	for name, file := range named {
		if !slices.ContainsFunc(paths, func(p string) bool { return strings.HasSuffix(p, name) }) {
			t.Errorf("%s: unix socket %s is not in the table", file, name)
		}
	}
	for _, p := range paths {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(named)),
			func(name string) bool { return strings.HasSuffix(p, name) }) {
			t.Errorf("unix socket %s of the table is nowhere in the program", p)
		}
	}
}

// socketNames are the names of unix sockets in the program's source, with the file of each: whole paths, or their ends.
func socketNames(t *testing.T) map[string]string {
	t.Helper()
	named := map[string]string{}
	literal := regexp.MustCompile(`"([^"\s]*\.sock)"`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "lab" || d.Name() == "bench" || d.Name() == ".git"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		for _, m := range literal.FindAllSubmatch(source, -1) {
			// Sockets of container runtimes are compared with what kubelets name, and never opened.
			switch name := string(m[1]); {
			case strings.Contains(name, "containerd.sock"), strings.Contains(name, "crio.sock"):
			case name == ".sock": // behind the name of a device; it would be the end of every path
				for i := range plan.Devices {
					named[plan.Device(i)+name] = path
				}
			default:
				named[name] = path
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return named
}

// serveDNS runs the process dns, with the sockets that a placement gives it.
func (r *nodeRig) serveDNS() {
	r.t.Helper()
	f := &dns.Feed{Log: slog.New(slog.DiscardHandler), Open: func(k dnsschema.Socket) (file *os.File, err error) {
		err = r.node.Do(func() error { file, err = dns.OpenSocket(k); return err })
		return file, err
	}}
	if err := f.Sync(r.t.Context(), map[model.Name]dnsschema.Records{}); err != nil {
		r.t.Fatal(err)
	}
	var sockets []dnsschema.Socket
	for _, addr := range []string{"10.96.0.10:53", rigNode + ":10053"} {
		for _, network := range []string{"udp", "tcp"} {
			sockets = append(sockets, dnsschema.Socket{Network: network, Addr: netip.MustParseAddrPort(addr)})
		}
	}
	f.Configure(dnsschema.Settings{Domains: []string{"cluster.local."}})
	f.Listen(sockets)
	dir := r.t.TempDir()
	serveFeed(r.t, f, filepath.Join(dir, "dns.sock"))
	startDNS(r.t, dir)
}

// serveProxy runs the process proxy with the sockets of a node.
func (r *nodeRig) serveProxy() {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	dir := proxyDir(r.t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "proxy.sock")})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "proxy.sock"), 0o666); err != nil {
		r.t.Fatal(err)
	}
	keeper := feed.NewKeeper("", log)
	keeper.Bind = func(k schema.Socket) (file *os.File, err error) {
		err = r.node.Do(func() error { file, err = feed.OpenSocket(k); return err })
		return file, err
	}
	f := feed.New(proxyTestUser, keeper, log)
	f.Configure(schema.Settings{Drain: time.Millisecond})
	f.Listen(ingress.Sockets([]netip.Addr{netip.MustParseAddr(rigNode)}, true))
	for _, err := range []error{f.Hosts().Sync(r.t.Context(), map[string]schema.Host{}),
		f.Backends().Sync(r.t.Context(),
			map[string]schema.Backend{}), f.Certificates().Sync(r.t.Context(), nil)} {
		if err != nil {
			r.t.Fatal(err)
		}
	}
	go func() { _ = f.Serve(r.t.Context(), l) }()
	startProxyIn(r.t, r.node, testBinary(r.t, dir), dir)
	testnet.Eventually(r.t, 30*time.Second, func() error {
		_, code, err := agent.Ask(r.t.Context(), filepath.Join(dir, "health.sock"), "/readyz")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d", code)
		}
		return err
	})
}

// flooded is a listener of the suite.
type flooded struct {
	row     string // of the table
	network string
	target  string
	ns      func(*nodeRig) *testnet.NS
	// sources are those of the floods. One is the first of them.
	sources []netip.Addr
	// process is the child that serves; "" is the agent itself.
	process string
	// connections is its bound, memory what the process may take beyond what it had, in bytes.
	connections int
	memory      int64
	begin       []byte // of a message
	whole       []byte // a message
	good        func(*nodeRig) func() error
}

func strangers(n int) (out []netip.Addr) {
	for i := range n {
		out = append(out, netip.AddrFrom4([4]byte{10, 8, byte(1 + i/250), byte(1 + i%250)}))
	}
	return out
}

func outside(r *nodeRig) *testnet.NS { return r.outside }
func inside(r *nodeRig) *testnet.NS  { return r.node }

// suite is every listener of the agent and its children. Those of dns and proxy are flooded by the tests that the table
// names.
func suite() []flooded {
	request := []byte("GET /healthz HTTP/1.1\r\nHost: node\r\nX: " + strings.Repeat("x", 2000))
	local := []netip.Addr{}
	for i := range 200 {
		local = append(local, netip.AddrFrom4([4]byte{127, 5, byte(i / 250), byte(1 + i%250)}))
	}
	heartbeat := binary.BigEndian.AppendUint32([]byte("\xf4\x08wayleave\x0a"), 60<<10)
	good := func(ns func(*nodeRig) *testnet.NS, from, addr, path string) func(*nodeRig) func() error {
		return func(r *nodeRig) func() error { return func() error { return r.get(ns(r), from, addr, path) } }
	}
	check := fmt.Sprintf("%s:%d", rigNode, rigCheck)
	metrics := fmt.Sprintf("%s:%d", rigNode, rigMetrics)
	beats := func(r *nodeRig) func() error {
		other := r.otherNode()
		other.SetPeers([]peers.Peer{{Name: "node1", Addrs: []netip.Addr{netip.MustParseAddr(rigNode)}},
			{Name: "node2", Addrs: []netip.Addr{netip.MustParseAddr(rigOther)}}})
		lives := func() error {
			// On a machine that is busy with the flood, a heartbeat may be late; it must come while the flood lasts.
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				if slices.ContainsFunc(other.Members(), func(m peers.Member) bool { return m.Live }) {
					return nil
				}
			}
			return fmt.Errorf("node1 shows no life")
		}
		testnet.Eventually(r.t, 20*time.Second, lives)
		return lives
	}
	speaks := func(r *nodeRig) func() error { return r.speaksBGP }
	return []flooded{
		{"tcp *:10256", "tcp", rigNode + ":10256", outside, strangers(600), "status-server", 512, 64 << 20, request,
			append(slices.Clone(request), "\r\n\r\n"...), good(outside, "10.8.200.1", rigNode+":10256", "/livez")},
		{"tcp loopback:10249", "tcp", "127.0.0.1:10249", inside, local, "status-server", 512, 64 << 20, request,
			[]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
			good(inside, "127.0.0.1", "127.0.0.1:10249", "/metrics")},
		{"tcp node:10247", "tcp", metrics, outside, strangers(600), "status-server", 512, 64 << 20, clientHello()[:50],
			clientHello(), func(r *nodeRig) func() error {
				return func() error {
					time.Sleep(300 * time.Millisecond) // a source has 5 handshakes in a second
					return r.refusedByTLS("10.8.200.1", metrics)
				}
			}},
		{"tcp *:30000-32767", "tcp", check, outside, strangers(600), "", 1024, 64 << 20, request,
			append(slices.Clone(request), "\r\n\r\n"...), good(outside, "10.8.200.1", check, "/")},
		{"tcp node:7946", "tcp", rigNode + ":7946", outside, strangers(200), "l2", 64, 64 << 20, heartbeat,
			heartbeat, beats},
		{"tcp node:7946", "tcp", rigNode + ":7946", outside, []netip.Addr{netip.MustParseAddr(rigOther)}, "l2", 64,
			64 << 20, heartbeat, heartbeat, beats},
		{"tcp node:179", "tcp", rigNode + ":179", outside, strangers(200), "bgp", 64, 128 << 20, bgpOpen()[:20],
			bgpOpen(), speaks},
		{"udp node:7946", "udp", rigNode + ":7946", outside, strangers(200), "l2", 64, 64 << 20, heartbeat,
			heartbeat, beats},
		{"udp node:7946", "udp", rigNode + ":7946", outside, []netip.Addr{netip.MustParseAddr(rigOther)}, "l2", 64,
			64 << 20, heartbeat, heartbeat, beats},
	}
}

// bgpOpen is an OPEN of a stranger.
func bgpOpen() []byte {
	m := append(bytes.Repeat([]byte{0xff}, 16), 0, 29, 1, 4, 0xfd, 0xe8, 0, 90, 10, 8, 1, 1, 0)
	return m
}

// speaksBGP waits until the peer that connects gets an OPEN: after a connection that was lost the process waits, too.
func (r *nodeRig) speaksBGP() error {
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var c net.Conn
		if c, err = r.outside.DialFrom("tcp", rigOther+":0", rigNode+":179", 5*time.Second); err != nil {
			continue
		}
		head := make([]byte, 19)
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = io.ReadFull(c, head)
		_ = c.Close()
		if err == nil && head[18] == 1 {
			return nil
		}
	}
	return fmt.Errorf("no OPEN: %w", err)
}

// flood is a kind of them.
type flood struct {
	name        string
	connections int
	do          func(context.Context, net.Conn) error
}

func (l flooded) floods() []flood {
	chunk := make([]byte, 4<<10)
	if l.network == "udp" {
		// As fast as a machine can, it would only measure how many packets the kernel drops.
		return []flood{{"datagrams", 200, paced(chunk)}, {"short datagrams", 200, paced(l.whole)}}
	}
	return []flood{{"idle", 800, hostile.Idle}, {"half a message", 800, hostile.Partial(l.begin)},
		{"slow", 800, hostile.Slow(l.begin, 50*time.Millisecond)},
		{"bytes", 800, hostile.Bytes(l.begin, chunk, false)}, {"messages", 800, hostile.Bytes(l.whole, l.whole, false)}}
}

// paced sends a datagram every few milliseconds.
func paced(datagram []byte) func(context.Context, net.Conn) error {
	return func(ctx context.Context, c net.Conn) error {
		for ctx.Err() == nil {
			_, _ = c.Write(datagram) // a closed port is an error of the next
			time.Sleep(5 * time.Millisecond)
		}
		return ctx.Err()
	}
}

// A listener under floods of every kind takes bounded memory and descriptors, and a well-behaved client is served
// meanwhile.
func TestHostileClientsAreBounded(t *testing.T) {
	r := newNodeRig(t)
	for _, l := range suite() {
		t.Run(strings.ReplaceAll(l.row, " ", ":")+"/from "+l.sources[0].String(), func(t *testing.T) {
			inner := *r
			inner.t = t
			pid := r.agent
			if l.process != "" {
				pid = r.child(l.process)
			}
			good := l.good(&inner)
			from := [][]netip.Addr{l.sources[:1]}
			if len(l.sources) > 1 {
				from = append(from, l.sources)
			}
			for _, kind := range l.floods() {
				for _, sources := range from {
					flood := &hostile.Flood{NS: l.ns(r), Network: l.network, Target: l.target, Sources: sources,
						Connections: kind.connections, Do: kind.do}
					measure(t, l, fmt.Sprintf("%s, %d sources", kind.name, len(sources)), pid, flood, good)
				}
			}
			half := netip.MustParseAddrPort(l.target)
			if l.network == "tcp" && !half.Addr().IsLoopback() {
				hostile.HalfOpen(t, r.outside, netip.MustParsePrefix("10.8.0.0/16"), half, 20000)
				if err := good(); err != nil {
					t.Errorf("after 20,000 half-open connections: %v", err)
				}
			}
			if left := hostile.Descriptors(t, pid); left > l.connections+64 {
				t.Errorf("%d descriptors are open", left)
			}
		})
	}
}

// floodFor is how long each flood lasts, beside what the good client needs.
const floodFor = 400 * time.Millisecond

// measure runs one flood beside a good client.
func measure(t *testing.T, l flooded, name string, pid int, flood *hostile.Flood, good func() error) {
	t.Helper()
	before := hostile.Resident(t, pid)
	hostile.ResetPeak(t, pid)
	stop := flood.Start(t)
	client, end := hostile.Ask(t, 50*time.Millisecond, good)
	time.Sleep(floodFor)
	end()
	fds := hostile.Descriptors(t, pid)
	stop()
	asked, failed, last := client.Counts()
	grew := hostile.Peak(t, pid) - before
	t.Logf(
		"%-28s %5d connections, %6d KiB sent: memory +%5d KiB of %d, %4d descriptors; good client %d of %d, slowest %s",
		name, flood.Opened(), flood.Sent()>>10, grew>>10, l.memory>>10, fds, asked-failed, asked,
		client.Slowest().Round(time.Millisecond))
	if failed > 0 {
		t.Errorf("%s: %d of %d requests of a good client failed: %v", name, failed, asked, last)
	}
	if grew > l.memory {
		t.Errorf("%s: the process took %d bytes more, %d are allowed", name, grew, l.memory)
	}
	if fds > l.connections+64 {
		t.Errorf("%s: %d descriptors, %d connections are allowed", name, fds, l.connections)
	}
}
