package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"wayleave.dev/model"
)

const (
	vip4, vip6 = "10.96.0.50", "fd00:96::50"
	nodePort   = 30080
)

func web(ports ...model.ServicePort) *model.Service {
	if len(ports) == 0 {
		ports = []model.ServicePort{
			{Name: "tcp", Protocol: model.TCP, Port: 80, NodePort: nodePort},
			{Name: "udp", Protocol: model.UDP, Port: 80, NodePort: nodePort}}
	}
	return &model.Service{Name: model.Name{Namespace: "default", Name: "web"}, Type: model.NodePort, Ports: ports,
		ClusterIPs: []netip.Addr{netip.MustParseAddr(vip4), netip.MustParseAddr(vip6)}}
}

func vip(is6 bool) netip.AddrPort {
	if is6 {
		return netip.AddrPortFrom(netip.MustParseAddr(vip6), 80)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(vip4), 80)
}

func (w *World) nodeAddr(node int, is6 bool) netip.AddrPort {
	i := 0
	if is6 {
		i = 1
	}
	return netip.AddrPortFrom(w.Nodes[node].Addrs[i], nodePort)
}

func pick(ips []netip.Addr, is6 bool) netip.Addr {
	if is6 {
		return ips[1]
	}
	return ips[0]
}

// each runs fn for both protocols and families.
func each(t *testing.T, fn func(t *testing.T, network string, is6 bool)) {
	for _, network := range []string{"tcp", "udp"} {
		for _, is6 := range []bool{false, true} {
			t.Run(network+map[bool]string{false: "4", true: "6"}[is6], func(t *testing.T) { fn(t, network, is6) })
		}
	}
}

// row is a test of the table. It gets a world without Services, and may leave only Services behind.
type row struct {
	name string
	run  func(*testing.T, *World)
}

// rows are the whole table.
func rows() []row {
	return []row{
		{"ClusterIP", clusterIP}, {"NodePort", nodePorts}, {"spread", spread},
		{"no endpoints", noEndpoints}, {"unknown port", unknownPort}, {"endpoint removed", endpointRemoved},
		{"service removed", serviceRemoved}, {"many ports", manyPorts}, {"UDP before the service", udpBefore},
		{"foreign flush", foreignFlush},
		{"hairpin", hairpin}, {"conditions of endpoints", conditions}, {"live UDP flows", liveFlows},
		{"ClusterIP from outside", fromOutside}, {"backends on the node's network", hostNetwork},
		{"VIP is an address of the node", localVIP}, {"services side by side", sideBySide},
		{"restart under traffic", restart},
		{"session affinity", affinity}, {"session affinity follows changes", affinityChanges},
		{"session affinity ends", affinityEnds},
		{"external IPs", externalIPs}, {"external policy Local", externalLocal},
		{"external policy Local without local endpoints", externalLocalAway},
		{"internal policy Local", internalLocal}, {"source ranges", sourceRanges}, {"topology hints", hints},
		{"one family", oneFamily}, {"a service of another proxy", otherProxy}, {"slices for DNS only", notProxied},
		{"SCTP", sctp},
		{"no node port", noNodePort}, {"policy changes", policyChanges},
		{"external policy Local, endpoints are removed", externalLocalMoves},
		{"node ports on localhost", localhost},
	}
}

// Run runs the complete table for a mode, on one network. Rows do not depend on each other: each begins without
// Services, and their order is random.
func Run(t *testing.T, start func(*Node) Mode) {
	w := NewWorld(t, start)
	seed := uint64(time.Now().UnixNano())
	t.Logf("the seed of the order of rows is %d", seed)
	table := rows()
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(table), func(i, j int) { table[i], table[j] = table[j], table[i] })
	for _, r := range table {
		t.Run(r.name, func(t *testing.T) { r.run(t, w.fresh(t)) })
	}
}

// clusterIP: every client reaches the Service by its VIP, and backends see pods by their own address: "the source
// address is not changed" for pods and ClusterIPs.
func clusterIP(t *testing.T, w *World) {
	w.Set(web(), w.Pods[1], w.Pods[2])
	for _, c := range w.Clients()[:4] {
		t.Run("from "+c.Name, func(t *testing.T) {
			each(t, func(t *testing.T, network string, is6 bool) {
				pod, seen, err := c.Ask(network, vip(is6))
				if err != nil {
					t.Fatal(err)
				}
				if pod != "pod1b" && pod != "pod2a" {
					t.Errorf("%s answered", pod)
				}
				if seen != pick(c.IPs, is6) {
					t.Errorf("it saw %s, the client is %s", seen, pick(c.IPs, is6))
				}
			})
		})
	}
}

// nodePorts: every node serves the port, with or without a backend, also to its own processes and to pods; with policy
// Cluster the source can be the node's address.
func nodePorts(t *testing.T, w *World) {
	w.Set(web(), w.Pods[2]) // node1 has none
	for _, c := range w.Clients() {
		for node := range w.Nodes {
			t.Run(fmt.Sprintf("from %s to node%d", c.Name, node+1), func(t *testing.T) {
				each(t, func(t *testing.T, network string, is6 bool) {
					pod, seen, err := c.Ask(network, w.nodeAddr(node, is6))
					if err != nil || pod != "pod2a" {
						t.Errorf("%q answered, %v", pod, err)
					}
					// The answer must return through the node that the client used.
					if self := pick(w.Nodes[node].Addrs, is6); node != 1 && seen != self {
						t.Errorf("it saw %s, the node's address is %s", seen, self)
					}
				})
			})
		}
	}
}

// spread: with 3 equal slots and 150 connections, the probability that one gets fewer than 25 or more than 80 is below
// 10⁻⁵.
func spread(t *testing.T, w *World) {
	w.Set(web(), w.Pods[1], w.Pods[2], w.Pods[3])
	c := w.Clients()[0]
	each(t, func(t *testing.T, network string, is6 bool) {
		count := map[string]int{}
		for range 150 {
			pod, _, err := c.Ask(network, vip(is6))
			if err != nil {
				t.Fatal(err)
			}
			count[pod]++
		}
		for _, p := range []string{"pod1b", "pod2a", "pod2b"} {
			if count[p] < 25 || count[p] > 80 {
				t.Errorf("spread is %v", count)
			}
		}
	})
}

// hairpin: a pod reaches itself through its service.
func hairpin(t *testing.T, w *World) {
	w.Set(web(), w.Pods[0])
	each(t, func(t *testing.T, network string, is6 bool) {
		c := w.Clients()[0]
		for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(0, is6), w.nodeAddr(1, is6)} {
			if pod, _, err := c.Ask(network, to); err != nil || pod != "pod1a" {
				t.Errorf("by %s: %q answered, %v", to, pod, err)
			}
		}
	})
}

// refused requires a prompt refusal.
func refused(t *testing.T, c Client, network string, to netip.AddrPort) {
	t.Helper()
	start := time.Now()
	pod, _, err := c.Ask(network, to)
	// The kernel reports the refusal to a process of the same node as EPERM of the send call.
	if !errors.Is(err, syscall.ECONNREFUSED) && !(errors.Is(err, syscall.EPERM) &&
		strings.HasSuffix(c.Name, "itself")) {
		t.Errorf("%s to %s by %s: %q answered, %v; want a refusal", c.Name, to, network, pod, err)
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("%s to %s: refused only after %s", c.Name, to, took)
	}
}

// noEndpoints: "if there are no endpoints, connections are refused".
func noEndpoints(t *testing.T, w *World) {
	w.Set(web())
	for _, c := range w.Clients() {
		t.Run("from "+c.Name, func(t *testing.T) {
			each(t, func(t *testing.T, network string, is6 bool) {
				if c.Name != "outside" {
					refused(t, c, network, vip(is6))
				}
				refused(t, c, network, w.nodeAddr(0, is6))
			})
		})
	}
}

func unknownPort(t *testing.T, w *World) {
	w.Set(web(), w.Pods[1])
	each(t, func(t *testing.T, network string, is6 bool) {
		for _, c := range w.Clients()[:3] {
			refused(t, c, network, netip.AddrPortFrom(vip(is6).Addr(), 81))
		}
	})
}

// endpointRemoved: an established TCP connection continues; a UDP client that keeps its socket moves to an existing
// endpoint.
func endpointRemoved(t *testing.T, w *World) {
	for _, is6 := range []bool{false, true} {
		w.Set(web(), w.Pods[1])
		c := w.Clients()[0]
		for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(1, is6)} {
			t.Run(to.String(), func(t *testing.T) {
				w.Set(web(), w.Pods[1])
				tcp, err := c.NS.Dial("tcp", to.String(), patience)
				if err != nil {
					t.Fatal(err)
				}
				defer tcp.Close()
				udp, err := c.NS.Dial("udp", to.String(), patience)
				if err != nil {
					t.Fatal(err)
				}
				defer udp.Close()
				for _, conn := range []interface {
					SetDeadline(time.Time) error
				}{tcp, udp} {
					_ = conn.SetDeadline(time.Now().Add(patience))
				}
				if pod, _, err := Say(tcp); err != nil || pod != "pod1b" {
					t.Fatalf("before, by TCP: %q, %v", pod, err)
				}
				if pod, _, err := Say(udp); err != nil || pod != "pod1b" {
					t.Fatalf("before, by UDP: %q, %v", pod, err)
				}
				w.Set(web(), w.Pods[2])
				if pod, _, err := Say(udp); err != nil || pod != "pod2a" {
					t.Errorf("after, by the same UDP socket: %q, %v", pod, err)
				}
				if pod, _, err := Say(tcp); err != nil || pod != "pod1b" {
					t.Errorf("after, by the established connection: %q, %v", pod, err)
				}
			})
		}
	}
}

func serviceRemoved(t *testing.T, w *World) {
	w.Set(web(), w.Pods[1])
	c := w.Clients()[0]
	udp, err := c.NS.Dial("udp", vip(false).String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if _, _, err := Say(udp); err != nil {
		t.Fatal(err)
	}
	w.Remove(web().Name)
	if pod, _, err := say(udp, patience); err == nil {
		t.Errorf("a removed service is still answered by UDP: %s", pod)
	}
	if pod, _, err := c.Ask("tcp", vip(false)); err == nil {
		t.Errorf("a removed service is still answered by TCP: %s", pod)
	}
	if pod, _, err := c.Ask("tcp", w.nodeAddr(0, false)); err == nil {
		t.Errorf("a removed node port is still answered: %s", pod)
	}
}

// manyPorts: several ports of a Service, and one port number in two protocols, are independent.
func manyPorts(t *testing.T, w *World) {
	w.Set(web(model.ServicePort{Name: "a", Protocol: model.TCP, Port: 80}, model.ServicePort{Name: "b",
		Protocol: model.TCP, Port: 81},
		model.ServicePort{Name: "c", Protocol: model.UDP, Port: 81}), w.Pods[2])
	c := w.Clients()[0]
	each(t, func(t *testing.T, network string, is6 bool) {
		for port, served := range map[uint16]bool{80: network == "tcp", 81: true, 82: false} {
			to := netip.AddrPortFrom(vip(is6).Addr(), port)
			if !served {
				refused(t, c, network, to)
			} else if pod, _, err := c.Ask(network, to); err != nil || pod != "pod2a" {
				t.Errorf("port %d: %q, %v", port, pod, err)
			}
		}
	})
}

// udpBefore: a client that sends before there are endpoints is served on the same socket once there are.
func udpBefore(t *testing.T, w *World) {
	w.Remove(web().Name)
	c := w.Clients()[0]
	udp, err := c.NS.Dial("udp", vip(false).String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if _, _, err := say(udp, patience); err == nil {
		t.Fatal("answered before there is a service")
	}
	w.Set(web(), w.Pods[1])
	deadline := time.Now().Add(2 * time.Second)
	for {
		pod, _, err := say(udp, patience)
		if err == nil && pod == "pod1b" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q, %v", pod, err)
		}
	}
}

// foreignFlush: rules that another program removed are restored, and an established connection survives.
func foreignFlush(t *testing.T, w *World) {
	w.Set(web(), w.Pods[2])
	c := w.Clients()[0]
	tcp, err := c.NS.Dial("tcp", vip(false).String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for i, n := range w.Nodes {
		w.modes[i].Disturb(n.NS)
	}
	w.Program()
	if pod, _, err := c.Ask("tcp", vip(false)); err != nil || pod != "pod2a" {
		t.Errorf("after the flush: %q, %v", pod, err)
	}
	if pod, _, err := Say(tcp); err != nil || !strings.HasPrefix(pod, "pod2a") {
		t.Errorf("the established connection: %q, %v", pod, err)
	}
}
