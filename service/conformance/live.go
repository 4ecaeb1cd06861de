package conformance

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/lossmeter"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// Live is traffic during a change: loss meters from a pod to the ClusterIP and from outside to the node ports of both
// nodes, and connections and sockets that stay open.
type Live struct {
	t       *testing.T
	w       *World
	held    []open
	cancel  context.CancelFunc
	reports chan lossmeter.Report
	least   int64 // that must have been sent
	since   time.Time
	n       int
}

const meterPort = 30777

// late is the time after which an answer counts as lost. It is long because busy and emulated machines are slow.
const late = 30 * time.Second

// Meter programs an echo Service with the third pod as backend, for Live.
func (w *World) Meter() {
	w.t.Helper()
	server := w.Pods[2].NS
	l, u := server.Listen("tcp", ":8081"), server.ListenPacket("udp", ":8081")
	go func() { _ = lossmeter.ServeTCP(l) }()
	go func() { _ = lossmeter.ServeUDP(u) }()
	err := w.Store.Write(func(tx *model.Writer) {
		ports := []model.ServicePort{{Name: "t", Protocol: model.TCP, Port: 7, NodePort: meterPort},
			{Name: "u", Protocol: model.UDP, Port: 7, NodePort: meterPort}}
		name := model.Name{Namespace: "default", Name: "meter"}
		tx.PutService(&model.Service{Name: name, Type: model.NodePort, Ports: ports,
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.77"), netip.MustParseAddr("fd00:96::77")}})
		for i, a := range w.Pods[2].IPs {
			tx.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "default",
				Name: fmt.Sprint("meter-", i == 1)}, Service: "meter",
				Ports: []model.EndpointPort{{Name: "t", Protocol: model.TCP, Port: 8081},
					{Name: "u", Protocol: model.UDP, Port: 8081}},
				Endpoints: []model.Endpoint{{Addr: a, Node: "node2", Ready: true, Serving: true}}})
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Program()
}

// Web is a Service with a node port, TCP and UDP, for Set.
func Web() *model.Service { return web() }

// Start begins to measure, and opens connections to the Services web and Meter, which must be programmed. pace is the
// fraction of the full packet rate: 1 on a fast machine.
func Start(t *testing.T, w *World, pace float64) *Live {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &Live{t: t, w: w, held: openAll(t, w), cancel: cancel, reports: make(chan lossmeter.Report, 3),
		least: int64(100 * pace), since: time.Now()}
	run := func(from *testnet.NS, targets ...string) {
		var probes []lossmeter.Probe
		for _, to := range targets {
			for kind, rate := range map[string]int{"udp": 100, "tcp": 50, "connect": 20, "datagram": 20} {
				probes = append(probes, lossmeter.Probe{Kind: kind, Target: to, Rate: max(1, int(float64(rate)*pace)),
					Patience: late})
			}
		}
		m.n++
		go func() {
			r, err := lossmeter.Run(ctx, from.Dial, probes)
			if err != nil {
				t.Error(err)
			}
			m.reports <- r
		}()
	}
	run(w.Pods[0].NS, "10.96.0.77:7", "[fd00:96::77]:7")
	run(w.Outside, fmt.Sprintf("%s:%d", w.Nodes[0].Addrs[0], meterPort), fmt.Sprintf("%s:%d", w.Nodes[1].Addrs[0],
		meterPort), fmt.Sprintf("[%s]:%d", w.Nodes[0].Addrs[1], meterPort))
	return m
}

// atLeast is the minimum time of measurement: after a quick change, its consequences are measured, too.
const atLeast = 2 * time.Second

// Stop ends the measurement; a lost packet fails the test.
func (m *Live) Stop() {
	m.t.Helper()
	time.Sleep(time.Until(m.since.Add(atLeast)))
	m.cancel()
	for range m.n {
		r := <-m.reports
		if r.Lost() > 0 || r.Sent() < m.least {
			m.t.Errorf("lost %d of %d:\n%s", r.Lost(), r.Sent(), r)
		} else {
			m.t.Logf("lost 0 of %d", r.Sent())
		}
	}
}

// open is a connection or socket, with the pod that answers it.
type open struct {
	name string
	conn net.Conn
	pod  string
}

// openAll opens TCP connections and UDP sockets, none of which the change may break.
func openAll(t *testing.T, w *World) (list []open) {
	t.Helper()
	for _, from := range []Client{w.Clients()[0], w.Clients()[2], w.Clients()[4]} {
		for _, network := range []string{"tcp", "udp"} {
			for _, is6 := range []bool{false, true} {
				targets := []netip.AddrPort{vip(is6), w.nodeAddr(0, is6), w.nodeAddr(1, is6)}
				if from.Name == "outside" {
					targets = targets[1:]
				}
				for _, to := range targets {
					name := fmt.Sprintf("%s from %s to %s", network, from.Name, to)
					conn, err := from.NS.Dial(network, to.String(), late)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					t.Cleanup(func() { conn.Close() })
					pod, _, err := say(conn, late)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					list = append(list, open{name, conn, pod})
				}
			}
		}
	}
	return list
}

// Check requires an answer over each connection and socket; over TCP it must be from the same pod.
func (m *Live) Check(when string) {
	m.t.Helper()
	for _, o := range m.held {
		pod, _, err := say(o.conn, late)
		if err != nil || strings.HasPrefix(o.name, "tcp") && pod != o.pod {
			m.t.Errorf("%s, %s: %q answered, %v; it was %s", when, o.name, pod, err, o.pod)
		}
	}
}

// Close ends the connections.
func (m *Live) Close() {
	for _, o := range m.held {
		o.conn.Close()
	}
}

// Ask requires answers to new connections.
func (m *Live) Ask() {
	m.t.Helper()
	w := m.w
	for _, c := range w.Clients()[:4] {
		for _, network := range []string{"tcp", "udp"} {
			for _, is6 := range []bool{false, true} {
				for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(0, is6)} {
					if pod, _, err := c.ask(network, to, late); err != nil {
						m.t.Errorf("new, %s from %s to %s: %q, %v", network, c.Name, to, pod, err)
					}
				}
			}
		}
	}
}
