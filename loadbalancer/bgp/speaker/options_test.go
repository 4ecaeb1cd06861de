package speaker

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
)

func pointer(v uint32) *uint32 { return &v }

// shows waits until the router's answer contains all of the parts.
func shows(t *testing.T, r *testnet.Router, command []string, parts ...string) {
	t.Helper()
	testnet.Eventually(t, 40*time.Second, func() error {
		out, err := r.Try(command...)
		for _, p := range parts {
			if err == nil && !strings.Contains(out, p) {
				err = fmt.Errorf("%v does not show %q:\n%s", command, p, out)
			}
		}
		return err
	})
}

var route10 = []string{"show", "route", "192.0.2.10/32", "all"}

// Attributes arrive as they were asked for, change in a running session, and no mark of ours is in them. A path goes
// only to sessions of its classes.
func TestAttributesOfAClass(t *testing.T) {
	t.Parallel()
	w := newRack(t, 1)
	n := w.nodes[0]
	r := testnet.NewBIRD(w.router, bird(w.nodes, ""))
	state := n.state(toRouter(router4), "192.0.2.10/32", "192.0.2.11/32")
	state.Classes = []bgp.Class{
		{Name: "first", Sessions: []string{"BGPPeer router"}, Communities: []uint32{64512<<16 | 100, 64512<<16 | 200},
			Large: [][3]uint32{{64512, 1, 2}}, MED: pointer(7)},
		{Name: "second", Sessions: []string{"BGPPeer router"}, MED: pointer(9)},
		{Name: "nobody", Sessions: nil},
		{Name: "unknown", Sessions: []string{"BGPPeer other"}}}
	state.Paths = []bgp.Path{{Prefix: netip.MustParsePrefix("192.0.2.10/32"), Classes: []string{"second", "first"}},
		{Prefix: netip.MustParsePrefix("192.0.2.11/32"), Classes: []string{"second"}},
		{Prefix: netip.MustParsePrefix("192.0.2.12/32"), Classes: []string{"nobody", "unknown"}},
		{Prefix: netip.MustParsePrefix("192.0.2.13/32")}}
	n.start(state)
	has(t, r, "192.0.2.10/32", "192.0.2.11/32")
	shows(t, r, route10, "BGP.med: 7", "(64512,100) (64512,200)", "BGP.large_community: (64512, 1, 2)",
		"BGP.as_path: 64512", "BGP.next_hop: 10.9.0.1")
	shows(t, r, []string{"show", "route", "192.0.2.11/32", "all"}, "BGP.med: 9")
	for _, p := range []string{"192.0.2.10/32", "192.0.2.11/32"} {
		if out := r.Show("show", "route", p, "all"); strings.Contains(out, "4294967295") {
			t.Errorf("%s has a mark:\n%s", p, out)
		}
	}
	n.established("BGPPeer router")
	since := n.since("BGPPeer router")
	state.Classes[0].MED, state.Classes[0].Communities = pointer(70), []uint32{64512<<16 | 300}
	n.Tell(state)
	shows(t, r, route10, "BGP.med: 70", "(64512,300)")
	state.Classes = state.Classes[1:]
	n.Tell(state)
	shows(t, r, route10, "BGP.med: 9")
	state.Classes = nil
	n.Tell(state)
	has(t, r)
	if now := n.since("BGPPeer router"); !now.Equal(since) {
		t.Errorf("the session was lost: %s, now %s", since, now)
	}
}

// Options of a session that both sides must have: with them there is a session, without them none, and the report says
// what this node saw.
func TestOptionsOfASession(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		bird   string
		change func(*bgp.Session)
		// wrong has the router refuse, or not answer.
		wrong func(*bgp.Session)
		says  string
	}{
		"password": {`password "secret";`, func(s *bgp.Session) { s.Password = "secret" },
			func(s *bgp.Session) { s.Password = "other" }, "no connection"},
		"no password": {"", func(*bgp.Session) {}, func(s *bgp.Session) { s.Password = "secret" }, "no connection"},
		"TTL security": {"ttl security on;", func(s *bgp.Session) { s.TTLSecurity = 1 },
			func(s *bgp.Session) { s.TTLSecurity = 0 },
			""},
		"ASN": {"", func(*bgp.Session) {}, func(s *bgp.Session) { s.ASN = 65099 },
			"this node ended the session: code 2(open) subcode 2(bad peer as)"},
		"4-byte ASN": {"", func(s *bgp.Session) {}, func(s *bgp.Session) { s.ASN = 4200000001 },
			"this node ended the session: code 2(open) subcode 2(bad peer as)"},
		"local ASN": {"", func(*bgp.Session) {}, func(s *bgp.Session) { s.LocalASN = 65111 },
			"the peer ended the session: it refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRack(t, 1)
			n := w.nodes[0]
			r := testnet.NewBIRD(w.router, bird(w.nodes, "connect delay time 1; error wait time 1, 2; "+x.bird))
			wrong := toRouter(router4)
			x.change(&wrong)
			x.wrong(&wrong)
			n.start(n.state(wrong, "192.0.2.10/32"))
			testnet.Eventually(t, 40*time.Second, func() error {
				if s, _ := n.session("BGPPeer router"); !strings.Contains(s.Error, x.says) ||
					s.State == bgp.Established {
					return fmt.Errorf("%+v, want an error with %q", s, x.says)
				}
				return nil
			})
			if err := hasNow(r); err != nil {
				t.Error(err)
			}
			right := toRouter(router4)
			x.change(&right)
			n.Tell(n.state(right, "192.0.2.10/32"))
			n.established("BGPPeer router")
			has(t, r, "192.0.2.10/32")
		})
	}
}

// A router of the same ASN gets the local preference.
func TestLocalPreferenceOfAnInternalPeer(t *testing.T) {
	t.Parallel()
	w := newRack(t, 1)
	n := w.nodes[0]
	r := testnet.NewBIRD(w.router, strings.ReplaceAll(bird(w.nodes, ""), "local as 65000", "local as 64512"))
	s := toRouter(router4)
	s.ASN = nodeASN
	state := n.state(s, "192.0.2.10/32")
	state.Classes[0].LocalPref = pointer(250)
	n.start(state)
	has(t, r, "192.0.2.10/32")
	shows(t, r, route10, "BGP.local_pref: 250")
}

// Peers of a range connect, other peers are refused; a passive session waits for its peer.
func TestPeersThatConnect(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*bgp.Session){
		"range":   func(s *bgp.Session) { s.Addr, s.Range = netip.Addr{}, netip.MustParsePrefix("10.9.0.248/29") },
		"passive": func(s *bgp.Session) { s.Passive = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRack(t, 2)
			n := w.nodes[0]
			r := testnet.NewBIRD(w.router, bird(w.nodes[:1], "connect delay time 1; error wait time 1, 2;"))
			stranger := testnet.NewBIRD(w.nodes[1].ns, bird(w.nodes[:1], "connect delay time 1; error wait time 1, 2;"))
			s := toRouter(router4)
			change(&s)
			state := n.state(s, "192.0.2.10/32")
			state.Sessions[0].NextHop6 = n.addr[1]
			state.Sessions[0].NextHop4 = netip.Addr{}
			n.start(state)
			has(t, r, "192.0.2.10/32")
			testnet.Eventually(t, 40*time.Second, func() error {
				if n.now().Refused == 0 {
					return fmt.Errorf("no stranger was refused: %+v", n.now())
				}
				return nil
			})
			if err := hasNow(stranger); err != nil {
				t.Errorf("the stranger: %v", err)
			}
		})
	}
}
