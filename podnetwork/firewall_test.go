package podnetwork

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// A host that forwards nothing by itself, as Docker and ufw set it up, lets pods
// through, says so in status, also after the firewall was loaded anew; and an
// uninstall leaves its chains as they were.
func TestAHostThatForwardsNothing(t *testing.T) {
	testnet.Need(t, "nft")
	c := newCluster(t)
	m := c.nodes[0]
	const docker = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; ip saddr " +
		"192.0.2.1 accept; }; }; " +
		"table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }; " +
		"table inet other { chain others { type filter hook forward priority 5; policy accept; }; }"
	plain := testnet.New(t, "plain")
	plain.Run("nft", docker)
	m.ns.Run("nft", docker)
	before := plain.Run("sh", "-c", "nft list table ip filter; nft list table ip6 filter; nft list table inet other")
	near, far := m.mustAdd("near"), c.nodes[1].mustAdd("far")
	tell(far.ns)
	through := func() {
		t.Helper()
		testnet.Promptly(t, time.Second, func() error {
			for f := range 2 {
				// Short tries: one that was swallowed must not take the second up.
				c, err := near.ns.Dial("tcp", netip.AddrPortFrom(far.ips[f], 80).String(), 100*time.Millisecond)
				if err != nil {
					return err
				}
				c.Close()
			}
			return nil
		})
	}
	through()
	if facts := strings.Join(m.net.Facts(), "; "); !strings.Contains(facts,
		"accepted in its chains ip filter FORWARD, ip6 filter FORWARD") {
		t.Errorf("status says %s", facts)
	}
	m.ns.Run("nft", "delete table ip filter; "+docker)
	through()
	out := m.ns.Run("nft", "list", "table", "ip", "filter")
	if n := strings.Count(out, "wayleave"); n != 6 { // a comment each, and two names
		t.Errorf("%d times we are in %s", n, out)
	}
	m.stop()
	if err := m.ns.Do(func() error { return Uninstall(t.Context(), m.config(c.store)) }); err != nil {
		t.Fatal(err)
	}
	if after := m.ns.Run("sh", "-c",
		"nft list table ip filter; nft list table ip6 filter; nft list table inet other"); after != before {
		t.Errorf("before it was %s, now %s", before, after)
	}
}
