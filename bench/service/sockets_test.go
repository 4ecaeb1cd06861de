package service

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/ebpf"
	"wayleave.dev/service/nftables"
)

const (
	socketRounds   = 15
	socketServices = 10000
	socketBackends = 10
	socketTime     = 300 * time.Millisecond
)

// socketNode is a node with two pods and a mode.
type socketNode struct {
	client, server *testnet.NS
	at             netip.Addr
	fill           time.Duration
	memory         uint64
}

// socketPlans are Services without endpoints that exist, and one whose endpoint is the server.
func socketPlans(server netip.Addr) (all map[model.Name]service.Plan, vip netip.Addr) {
	all = map[model.Name]service.Plan{}
	for i := range socketServices {
		a := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		f := service.FrontendPlan{Frontend: service.Frontend{Addr: a, Protocol: model.TCP, Port: 80}}
		for k := range socketBackends {
			f.Slots = append(f.Slots, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(100 + k), byte(i >> 8),
				byte(i)}), 80))
		}
		if i == socketServices/2 {
			vip, f.Slots = a, []netip.AddrPort{netip.AddrPortFrom(server, 80)}
		}
		all[model.Name{Namespace: "bench", Name: fmt.Sprintf("s%05d", i)}] = service.Plan{VIPs: []netip.Addr{a},
			Frontends: []service.FrontendPlan{f}}
	}
	return all, vip
}

func newSocketNode(t *testing.T, withPrograms bool) *socketNode {
	t.Helper()
	node := testnet.New(t, "node")
	node.Router()
	n := &socketNode{client: testnet.New(t, "client"), server: testnet.New(t, "server"),
		at: netip.MustParseAddr("10.244.1.3")}
	for i, pod := range []*testnet.NS{n.client, n.server} {
		host := fmt.Sprintf("pod%d", i)
		testnet.Veth(pod, "eth0", node, host)
		pod.Addr("eth0", fmt.Sprintf("10.244.1.%d/32", i+2))
		pod.Run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
		pod.Run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
		node.Addr(host, "169.254.1.1/32")
		node.Run("ip", "route", "add", fmt.Sprintf("10.244.1.%d/32", i+2), "dev", host)
	}
	tables, err := nft.NewKernel(node.FD())
	if err != nil {
		t.Fatal(err)
	}
	track, err := conntrack.NewKernel(node.FD())
	if err != nil {
		t.Fatal(err)
	}
	facts := service.NodeFacts{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		OwnPodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}
	var mode service.Mode = nftables.New(tables, track)
	var programs *sockets.Kernel
	if withPrograms {
		programs = &sockets.Kernel{NSFD: node.FD(), Cgroup: testnet.Cgroup(t),
			Folder: filepath.Join(testnet.BPFFS(t), "wayleave")}
		n.client.Enter(programs.Cgroup)
		n.server.Enter(programs.Cgroup)
		mode = ebpf.New(nftables.New(tables, track), programs, nil)
	}
	mode.SetNodeFacts(facts)
	plans, _ := socketPlans(n.at)
	start := time.Now()
	if err := mode.Sync(t.Context(), plans); err != nil {
		t.Fatal(err)
	}
	n.fill = time.Since(start)
	t.Cleanup(func() { _ = mode.Remove(t.Context()) })
	if programs != nil {
		if n.memory, err = programs.Memory(); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// pinned runs fn on a thread of the namespace that stays on one processor, and returns the CPU time that it took.
func pinned(ns *testnet.NS, fn func() error) (cpu time.Duration, err error) {
	err = ns.Do(func() error {
		var set unix.CPUSet
		set.Set(runtime.NumCPU() - 1)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		before, err := threadTime()
		if err == nil {
			err = fn()
		}
		after, err2 := threadTime()
		cpu = after - before
		return errors.Join(err, err2)
	})
	return cpu, err
}

func threadTime() (time.Duration, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// answer serves a byte for a byte on a number of connections, one after the other, until the listener is shut down.
func answer(listener int) error {
	buf := make([]byte, 1)
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINVAL) { // shut down
			return nil
		}
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return err
		}
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				break
			}
			if _, err := unix.Write(fd, buf); err != nil {
				break
			}
		}
		_ = unix.Close(fd)
	}
}

// connectTo connects a socket that is closed by a reset, so that no port waits.
func connectTo(to netip.Addr) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	err = errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: to.As4()}))
	return fd, err
}

func exchange(fd int) error {
	buf := []byte{1}
	if _, err := unix.Write(fd, buf); err != nil {
		return err
	}
	n, err := unix.Read(fd, buf)
	if err == nil && n == 0 {
		err = errors.New("closed")
	}
	return err
}

// work is a kind of load; it returns how often it was done.
type work struct {
	name string
	run  func(to netip.Addr, until time.Time) (int, error)
}

func works() []work {
	return []work{
		{"new connections", func(to netip.Addr, until time.Time) (n int, err error) {
			for time.Now().Before(until) {
				fd, err := connectTo(to)
				if err == nil {
					err = exchange(fd)
				}
				if err := errors.Join(err, unix.Close(fd)); err != nil {
					return n, err
				}
				n++
			}
			return n, nil
		}},
		{"requests", func(to netip.Addr, until time.Time) (n int, err error) {
			fd, err := connectTo(to)
			if err != nil {
				return 0, err
			}
			defer unix.Close(fd)
			for time.Now().Before(until) {
				if err := exchange(fd); err != nil {
					return n, err
				}
				n++
			}
			return n, nil
		}},
	}
}

// perSecond returns how often a load was done per CPU-second of client and server together.
func (n *socketNode) perSecond(t *testing.T, w work, to netip.Addr) float64 {
	t.Helper()
	var listener int
	n.server.Must(func() (err error) {
		if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(listener, &unix.SockaddrInet4{Port: 80}), unix.Listen(listener, 100))
	})
	defer unix.Close(listener)
	type served struct {
		cpu time.Duration
		err error
	}
	done := make(chan served, 1)
	go func() {
		cpu, err := pinned(n.server, func() error { return answer(listener) })
		done <- served{cpu, err}
	}()
	count := 0
	cpu, err := pinned(n.client, func() (err error) {
		count, err = w.run(to, time.Now().Add(socketTime))
		return err
	})
	_ = unix.Shutdown(listener, unix.SHUT_RDWR)
	s := <-done
	if err := errors.Join(err, s.err); err != nil || count == 0 {
		t.Fatalf("%s to %s: %v, %d", w.name, to, err, count)
	}
	return float64(count) / (cpu + s.cpu).Seconds()
}

// TestSockets compares ways to a Service from a pod of the same node, and writes docs/bench-sockets.md.
func TestSockets(t *testing.T) {
	rules, programs := newSocketNode(t, false), newSocketNode(t, true)
	_, vip := socketPlans(rules.at)
	ways := []struct {
		name string
		node *socketNode
		to   netip.Addr
	}{
		{"ClusterIP, nftables", rules, vip}, {"ClusterIP, ebpf", programs, vip},
		{"pod's address, nftables", rules, rules.at}, {"pod's address, ebpf", programs, rules.at},
	}
	for _, w := range ways { // namespaces become known
		w.node.perSecond(t, works()[0], rules.at)
	}
	page := result.New("../../docs", "bench-sockets", "Benchmark: translation at the socket")
	page.Text("`make bench` generates this page: %s. Two pods of one node, %d Services of %d endpoints, no policies, "+
		"one processor for client and server. Medians of %d interleaved rounds of %s; a ratio is the median of the "+
		"rounds' ratios to ClusterIP in mode nftables. A round counts the CPU time of both threads. Packets take the "+
		"same path in both modes: forwarding, connection tracking, rules.", result.Machine(), socketServices,
		socketBackends, socketRounds, socketTime)
	rows := [][]string{{"work, per CPU-second"}}
	for i, w := range ways {
		rows[0] = append(rows[0], w.name)
		if i > 0 {
			rows[0] = append(rows[0], "ratio")
		}
	}
	for _, w := range works() {
		values, ratios := make([][]float64, len(ways)), make([][]float64, len(ways))
		for round := range socketRounds {
			now := make([]float64, len(ways))
			for i := range ways {
				i = (i + round) % len(ways)
				now[i] = ways[i].node.perSecond(t, w, ways[i].to)
				values[i] = append(values[i], now[i])
			}
			for i := range ways {
				ratios[i] = append(ratios[i], now[i]/now[0])
			}
		}
		row := []string{w.name}
		for i := range ways {
			row = append(row, result.Number(result.Median(values[i])))
			if i > 0 {
				row = append(row, result.Number(result.Median(ratios[i])))
			}
		}
		rows = append(rows, row)
	}
	page.Table(rows)
	page.Text("## Size\n\nThe first sync of %d Services of %d endpoints, and the memory of the maps in the kernel.",
		socketServices, socketBackends)
	page.Table([][]string{{"", "value"},
		{"sync, nftables, ms", result.Number(float64(rules.fill.Milliseconds()))},
		{"sync, ebpf, ms", result.Number(float64(programs.fill.Milliseconds()))},
		{"memory of the maps, MiB", result.Number(float64(programs.memory) / (1 << 20))}})
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}
