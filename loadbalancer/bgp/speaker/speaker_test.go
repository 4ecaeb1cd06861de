package speaker

import (
	"fmt"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// A router gets the addresses of both families in one session, over either family, with the node as the next hop, and
// loses one that is withdrawn.
func TestARouterLearnsTheAddresses(t *testing.T) {
	t.Parallel()
	for _, peer := range []struct {
		name string
		v    int
	}{{"over IPv4", 0}, {"over IPv6", 1}} {
		t.Run(peer.name, func(t *testing.T) {
			t.Parallel()
			w := newRack(t, 1)
			n := w.nodes[0]
			r := testnet.NewBIRD(w.router, bird(w.nodes, ""))
			addr := router4
			if peer.v == 1 {
				addr = router6
			}
			n.start(n.state(toRouter(addr), "192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128"))
			n.established("BGPPeer router")
			has(t, r, "192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128")
			for _, f := range []struct{ dst, via string }{{"192.0.2.10", n.addr[0].String()},
				{"2001:db8::10", n.addr[1].String()}} {
				testnet.Eventually(t, 20*time.Second, func() error {
					out, err := w.router.Try("ip", "route", "get", f.dst)
					if err == nil && !contains(out, "via "+f.via) {
						err = fmt.Errorf("%s: %s, want via %s", f.dst, out, f.via)
					}
					return err
				})
			}
			n.set(n.state(toRouter(addr), "192.0.2.11/32", "2001:db8::10/128"))
			has(t, r, "192.0.2.11/32", "2001:db8::10/128")
		})
	}
}
