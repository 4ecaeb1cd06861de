package conformance

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/model"
)

// conditions: only ready endpoints get connections. If none is ready, those get them that are terminating and still
// serve (KEP-1669), and no others.
func conditions(t *testing.T, w *World) {
	ready := model.Endpoint{Ready: true, Serving: true}
	leaving := model.Endpoint{Serving: true, Terminating: true}
	gone := model.Endpoint{Terminating: true}
	unready := model.Endpoint{}
	for _, row := range []struct {
		name         string
		first, other model.Endpoint
		want         string // the answering pod, empty for a refusal
	}{
		{"the ready one", unready, ready, "pod2a"},
		{"not one that leaves while another is ready", leaving, ready, "pod2a"},
		{"one that leaves when none is ready", unready, leaving, "pod2a"},
		{"none that has ended", gone, unready, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			w.SetEndpoints(web(), []*Pod{w.Pods[1], w.Pods[2]}, []model.Endpoint{row.first, row.other})
			c := w.Clients()[0]
			each(t, func(t *testing.T, network string, is6 bool) {
				if row.want == "" {
					refused(t, c, network, vip(is6))
					return
				}
				for range 8 { // an even choice of two would be detected in 255 of 256 runs
					if pod, _, err := c.Ask(network, vip(is6)); err != nil || pod != row.want {
						t.Fatalf("%q answered, %v", pod, err)
					}
				}
			})
		})
	}
}

// liveFlows: a UDP client keeps its endpoint while that exists, whatever happens to other endpoints, and also while the
// Service is refused.
func liveFlows(t *testing.T, w *World) {
	for _, is6 := range []bool{false, true} {
		for _, to := range []netip.AddrPort{vip(is6), w.nodeAddr(0, is6)} {
			t.Run(to.String(), func(t *testing.T) {
				w.Set(web(), w.Pods[2])
				udp, err := w.Clients()[0].NS.Dial("udp", to.String(), patience)
				if err != nil {
					t.Fatal(err)
				}
				defer udp.Close()
				port := func() string {
					t.Helper()
					pod, _, err := Say(udp)
					if err != nil || pod != "pod2a" {
						t.Errorf("%q answered, %v", pod, err)
					}
					return pod
				}
				port()
				w.Set(web(), w.Pods[2], w.Pods[1], w.Pods[3])
				port()
				w.Set(web(), w.Pods[1], w.Pods[2])
				port()
				w.Set(web())
				if pod, _, err := say(udp, patience); err == nil {
					t.Errorf("without endpoints %q answered", pod)
				}
				w.Set(web(), w.Pods[1])
				if pod, _, err := Say(udp); err != nil || pod != "pod1b" {
					t.Errorf("with an endpoint again: %q answered, %v", pod, err)
				}
			})
		}
	}
}

// fromOutside: a client that is not a pod and has a route to the VIP is served, and answers return through the node
// that it used.
func fromOutside(t *testing.T, w *World) {
	w.Set(web(), w.Pods[2])
	w.Outside.Route(vip4+"/32", w.Nodes[0].Addrs[0].String())
	w.Outside.Route(vip6+"/128", w.Nodes[0].Addrs[1].String())
	defer w.Outside.Run("ip", "route", "del", vip4+"/32")
	defer w.Outside.Run("ip", "-6", "route", "del", vip6+"/128")
	c := w.Clients()[4]
	each(t, func(t *testing.T, network string, is6 bool) {
		pod, seen, err := c.Ask(network, vip(is6))
		if err != nil || pod != "pod2a" || seen != pick(w.Nodes[0].Addrs, is6) {
			t.Errorf("%q answered and saw %s, %v", pod, seen, err)
		}
	})
	w.Set(web())
	each(t, func(t *testing.T, network string, is6 bool) { refused(t, c, network, vip(is6)) })
}

// hostNetwork: a backend can be a pod on the node's network, also for clients on the same node.
func hostNetwork(t *testing.T, w *World) {
	for _, host := range w.Hosts {
		w.Set(web(), host)
		for _, c := range w.Clients() {
			t.Run(fmt.Sprintf("from %s to %s", c.Name, host.Name), func(t *testing.T) {
				each(t, func(t *testing.T, network string, is6 bool) {
					to := vip(is6)
					if c.Name == "outside" {
						to = w.nodeAddr(0, is6)
					}
					if pod, _, err := c.Ask(network, to); err != nil || pod != host.Name {
						t.Errorf("%q answered, %v", pod, err)
					}
				})
			})
		}
	}
}

// localVIP: if a VIP is an address of the node, like that of DNS, and no local process listens there, processes of the
// node reach backends on other nodes.
func localVIP(t *testing.T, w *World) {
	for _, n := range w.Nodes {
		n.NS.Run("ip", "addr", "add", vip4+"/32", "dev", "lo", "scope", "host")
		n.NS.Addr("lo", vip6+"/128")
		defer n.NS.Run("ip", "addr", "del", vip4+"/32", "dev", "lo")
		defer n.NS.Run("ip", "addr", "del", vip6+"/128", "dev", "lo")
	}
	w.Set(web(), w.Pods[2])
	for _, i := range []int{0, 2, 3} {
		c := w.Clients()[i]
		t.Run("from "+c.Name, func(t *testing.T) {
			each(t, func(t *testing.T, network string, is6 bool) {
				if pod, _, err := c.Ask(network, vip(is6)); err != nil || pod != "pod2a" {
					t.Errorf("%q answered, %v", pod, err)
				}
			})
		})
	}
}

// sideBySide: Services with the same port numbers or the same backends do not get each other's connections.
func sideBySide(t *testing.T, w *World) {
	other := web(model.ServicePort{Name: "tcp", Protocol: model.TCP, Port: 80, NodePort: nodePort + 1},
		model.ServicePort{Name: "udp", Protocol: model.UDP, Port: 80, NodePort: nodePort + 1})
	other.Name.Name = "other"
	other.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.51"), netip.MustParseAddr("fd00:96::51")}
	w.Set(web(), w.Pods[1])
	w.Set(other, w.Pods[2])
	defer w.Remove(other.Name)
	c := w.Clients()[0]
	each(t, func(t *testing.T, network string, is6 bool) {
		node := w.nodeAddr(0, is6).Addr()
		for _, row := range []struct {
			to   netip.AddrPort
			want string
		}{
			{vip(is6), "pod1b"}, {netip.AddrPortFrom(pick(other.ClusterIPs, is6), 80), "pod2a"},
			{netip.AddrPortFrom(node, nodePort), "pod1b"}, {netip.AddrPortFrom(node, nodePort+1), "pod2a"},
		} {
			if pod, _, err := c.Ask(network, row.to); err != nil || pod != row.want {
				t.Errorf("at %s %q answered, %v; want %s", row.to, pod, err, row.want)
			}
		}
	})
	w.Remove(other.Name)
	each(t, func(t *testing.T, network string, is6 bool) {
		if pod, _, err := c.Ask(network, vip(is6)); err != nil || pod != "pod1b" {
			t.Errorf("after the other was removed: %q answered, %v", pod, err)
		}
	})
}

// restart: killing and restarting the program breaks no connection, new or established.
func restart(t *testing.T, w *World) {
	w.Set(web(), w.Pods[1], w.Pods[2])
	c := w.Clients()[0]
	old, err := c.NS.Dial("tcp", vip(false).String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var asked, failed atomic.Int64
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			n := asked.Add(1)
			if pod, _, err := c.Ask([]string{"tcp", "udp"}[n%2], vip(n%4 > 1)); err != nil {
				failed.Add(1)
				t.Errorf("request %d: %q, %v", n, pod, err)
			}
		}
	})
	for begin := time.Now(); time.Since(begin) < time.Second || asked.Load() < 50 && time.Since(begin) < time.Minute; {
		w.Restart()
	}
	close(stop)
	wg.Wait()
	if asked.Load() < 50 || failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), asked.Load())
	}
	if pod, _, err := Say(old); err != nil {
		t.Errorf("the connection from before: %q, %v", pod, err)
	}
}
