package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestInterfacesOfAnAddress(t *testing.T) {
	node, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")
	links := []hostLink{{"eth0", []netip.Addr{node}}, {"eth1", []netip.Addr{other}}, {"bond0", nil}}
	own := map[netip.Addr]bool{node: true}
	for _, tc := range []struct{ globs, want []string }{
		{nil, []string{"eth0"}},
		{[]string{"eth*"}, []string{"eth0", "eth1"}},
		{[]string{"bond?", "eth1"}, []string{"eth1", "bond0"}},
		{[]string{"wlan0"}, nil},
		{[]string{"["}, nil}, // the source has named it
	} {
		if got := match(links, tc.globs, own); !slices.Equal(got, tc.want) {
			t.Errorf("%v: %v, want %v", tc.globs, got, tc.want)
		}
	}
}

func TestStatusOfVIPs(t *testing.T) {
	now := time.Now()
	r := report{VIPs: []vipStatus{
		{Addr: netip.MustParseAddr("192.0.2.10"), Service: "default/web", Owner: "node1", Since: now.Add(-90 * time.Second)},
		{Addr: netip.MustParseAddr("2001:db8::10"), Service: "default/web,default/api", Since: now, Note: "disputed with node2"}}}
	want := "ADDRESS       SERVICE                  OWNER   SINCE      NOTE\n" +
		"192.0.2.10    default/web              node1   1m30s ago  \n" +
		"2001:db8::10  default/web,default/api  nobody  0s ago     disputed with node2\n"
	if got := r.vips(now); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := (report{}).vips(now); !strings.Contains(got, "no address") {
		t.Errorf("without addresses: %q", got)
	}
}
