package bgp

import (
	"net/netip"
	"strings"
	"testing"
)

// A captured process reports what the agent has not asked for, more than fits, and rows twice, which would make the
// agent's metrics fail.
func TestAReportIsBelievedAboutItsSessionsOnly(t *testing.T) {
	a, p := netip.MustParseAddr("192.0.2.1"), netip.MustParsePrefix("198.51.100.0/24")
	long := strings.Repeat("é", 1<<16)
	report := func() *Report {
		return &Report{Problem: long, Sessions: []SessionReport{{Name: "BGPPeer a", Addr: a, State: long, Error: long},
			{Name: "BGPPeer a", Addr: a}, {Name: "BGPPeer other", Addr: a}, {Name: "BGPPeer a", Addr: a.Next()}},
			Routes: []Route{{Prefix: p, Session: "BGPPeer a"}, {Prefix: p, Session: "Node other"},
				{Session: "BGPPeer a"}, {Prefix: netip.PrefixFrom(p.Addr().Next(), 24), Session: "BGPPeer a"}}}
	}
	r := report()
	r.Believe(&State{Sessions: []Session{{Name: "BGPPeer a"}}})
	if len(r.Sessions) != 2 || len(r.Routes) != 1 || r.Routes[0].Prefix != p || len(r.Problem) > maxText ||
		len(r.Sessions[0].State)+len(r.Sessions[0].Error) > 2*maxText {
		t.Errorf("believed: %d sessions, routes %v", len(r.Sessions), r.Routes)
	}
	for range 2 * maxRoutes {
		r.Routes = append(r.Routes, Route{Prefix: p, Session: "BGPPeer a"})
	}
	if r.Believe(&State{Sessions: []Session{{Name: "BGPPeer a"}}}); len(r.Routes) != maxRoutes {
		t.Errorf("%d routes are kept, want %d", len(r.Routes), maxRoutes)
	}
	r = report()
	if r.Believe(nil); len(r.Sessions)+len(r.Routes) > 0 {
		t.Errorf("believed before any state: %+v", r)
	}
}
