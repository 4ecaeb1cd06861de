package speaker

import (
	"fmt"
	"net"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// exchange asks the other end of a connection which node it is.
func exchange(c net.Conn) (node string, err error) {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte{'?'}); err != nil {
		return "", err
	}
	buf := make([]byte, 5)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// Linux as a router, with FRR and a hash of ports: when one of three nodes dies, its next hop goes, at least half
// of the connections to the others go on, and new ones succeed. The rest moves to a node that does not know them.
func TestConnectionsToSurvivingNodes(t *testing.T) {
	t.Parallel()
	const vip, all = "192.0.2.10", 90
	w := newRack(t, 3)
	client := testnet.New(t, "client")
	testnet.Veth(client, "eth0", w.router, "eth1")
	client.Addr("eth0", "10.8.0.2/24")
	w.router.Addr("eth1", "10.8.0.1/24")
	client.Route("0.0.0.0/0", "10.8.0.1")
	w.router.Sysctl("net/ipv4/fib_multipath_hash_policy", "1")
	testnet.NewFRR(w.router, frr(w.nodes))
	for i, n := range w.nodes {
		n.ns.Route("10.8.0.0/24", "10.9.0.254")
		n.ns.Addr("lo", vip+"/32")
		n.ns.Serve("tcp", vip+":80", func(c net.Conn) {
			for buf := make([]byte, 1); ; {
				if _, err := c.Read(buf); err != nil {
					return
				}
				if _, err := fmt.Fprintf(c, "node%d", i+1); err != nil {
					return
				}
			}
		})
		n.start(n.state(toRouter(router4), vip+"/32"))
	}
	routed(t, w.router, 3, vip)
	open := map[string][]net.Conn{}
	for range all {
		c, err := client.Dial("tcp", vip+":80", 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		node, err := exchange(c)
		if err != nil {
			t.Fatal(err)
		}
		open[node] = append(open[node], c)
	}
	if len(open) != 3 {
		t.Fatalf("connections reach %d nodes, want 3", len(open))
	}
	w.nodes[2].ns.Run("ip", "link", "set", "eth0", "down")
	died := time.Now()
	routed(t, w.router, 2, vip)
	t.Logf("the next hop was gone after %s", time.Since(died).Round(100*time.Millisecond))
	sum, alive := 0, 0
	for _, node := range []string{"node1", "node2"} {
		lives := 0
		for _, c := range open[node] {
			if now, err := exchange(c); err == nil && now == node {
				lives++
			}
		}
		t.Logf("%s: %d of %d connections go on", node, lives, len(open[node]))
		sum, alive = sum+len(open[node]), alive+lives
	}
	if 2*alive < sum {
		t.Errorf("%d of %d connections to the survivors go on, want half", alive, sum)
	}
	for range all {
		c, err := client.Dial("tcp", vip+":80", 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if node, err := exchange(c); err != nil || node == "node3" {
			t.Errorf("a new connection: %q, %v", node, err)
		}
		_ = c.Close()
	}
}
