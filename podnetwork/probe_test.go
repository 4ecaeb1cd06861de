package podnetwork

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/podnetwork/mtu"
	"wayleave.dev/podnetwork/routes"
)

// TestASmallerPath: between the segments only smaller packets pass, and the router
// says so or swallows them. It is found, reported, and large transfers arrive; and
// all is as before when the path is.
func TestASmallerPath(t *testing.T) {
	t.Parallel()
	bin := plugin(t)
	for _, hole := range []bool{false, true} {
		for _, f := range []families{{"IPv4", true, false}, {"IPv6", false, true}} {
			t.Run(fmt.Sprintf("%s, swallowed: %v", f.name, hole), func(t *testing.T) {
				t.Parallel()
				s := newSegments(t, routes.Auto, f, 1500, bin)
				from, to := s.nodes[0].mustAdd("from"), s.nodes[2].mustAdd("to")
				serveTransfers(to.ns)
				near := s.nodes[1].mustAdd("near")
				serveTransfers(near.ns)
				if hole {
					for _, m := range s.nodes { // or the router would see segments in one piece
						m.ns.Run("ethtool", "-K", "eth0", "tso", "off", "gso", "off", "tx-udp_tnl-segmentation", "off",
							"tx-udp_tnl-csum-segmentation", "off")
					}
					s.router.Run("nft", "table inet hole { chain fwd0 { type filter hook forward priority 0; meta "+
						"length > 1400 drop; }; }")
				} else {
					s.router.Run("ip", "link", "set", "eth1", "mtu", "1400")
				}
				said := func() string { p, _ := s.nodes[0].bad.Load("podnetwork paths"); return fmt.Sprint(p) }
				testnet.Eventually(t, 20*time.Second, func() error {
					if want := "packets of at most 1400 bytes arrive"; !strings.Contains(said(), "path to node3: "+
						want) || !strings.Contains(said(), "path to node4: "+want) {
						return fmt.Errorf("reported is %s", said())
					}
					return nil
				})
				if facts := strings.Join(s.nodes[0].net.Facts(), "\n"); !strings.Contains(facts,
					"packets of at most 1400 bytes reach node3") {
					t.Errorf("status says %s", facts)
				}
				testnet.Eventually(t, 10*time.Second, func() error {
					if err := fetch(from.ns, to.ips[0]); err != nil {
						return fmt.Errorf("%w; the way back: %s, %s", err, s.nodes[2].ns.Run("ip", "route", "get",
							from.ips[0].String()), strings.Join(s.nodes[2].net.Facts(), "; "))
					}
					return nil
				})
				if err := fetch(from.ns, near.ips[0]); err != nil {
					t.Error(err)
				}
				if hole {
					s.router.Run("nft", "delete", "table", "inet", "hole")
				} else {
					s.router.Run("ip", "link", "set", "eth1", "mtu", "1500")
				}
				testnet.Eventually(t, 10*time.Second, func() error {
					if said() != "[]" {
						return fmt.Errorf("still reported: %s", said())
					}
					return nil
				})
			})
		}
	}
}

// TestSpoiledChecksums: what comes out of the tunnel has wrong checksums, as with
// faulty offloads; it is found and reported, and the kernel computes them.
func TestSpoiledChecksums(t *testing.T) {
	t.Parallel()
	s := newSegments(t, routes.Auto, families{"IPv4", true, false}, 1500, plugin(t))
	m := s.nodes[0]
	k := mtu.Kernel{Inside: m.ns.Do, Wait: time.Second}
	from, to := s.model(m).InternalIPs[0], s.model(s.nodes[2]).InternalIPs[0]
	if ok, err := k.Refused(t.Context(), from, to, routes.Device); !ok || err != nil {
		t.Fatalf("a sound tunnel: %v, %v", ok, err)
	}
	if out := m.ns.Run("ethtool", "-k", routes.Device); !strings.Contains(out, "tx-checksumming: on") {
		t.Fatalf("before: %s", out)
	}
	m.ns.Run("ethtool", "-K", "eth0", "tx", "off") // between virtual devices nobody computes any
	m.ns.Run("nft", `table ip spoil { chain out0 { type filter hook output priority 0; oifname "wayleave-vxlan" `+
		`meta l4proto udp @th,48,16 set 0xbad; }; }`)
	testnet.Eventually(t, 20*time.Second, func() error {
		p, _ := m.bad.Load("podnetwork paths")
		if !strings.Contains(fmt.Sprint(p), "VXLAN: packets come out of it with wrong checksums") {
			return fmt.Errorf("reported is %v", p)
		}
		if out := m.ns.Run("ethtool", "-k", routes.Device); !strings.Contains(out, "tx-checksumming: off") {
			return fmt.Errorf("offload: %s", out)
		}
		return nil
	})
	if p, ok := s.nodes[1].bad.Load("podnetwork paths"); ok && fmt.Sprint(p) != "[]" {
		t.Errorf("a node without the fault reports %v", p)
	}
}
