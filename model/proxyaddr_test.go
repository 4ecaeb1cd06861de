package model

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestTheProxysAddressFollowsFromThePodNetwork(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.244.1.0/24":     "10.244.1.254",
		"10.244.1.7/24":     "10.244.1.254", // not masked
		"10.244.0.0/16":     "10.244.255.254",
		"10.0.0.0/8":        "10.0.255.254",
		"10.244.1.8/29":     "10.244.1.14",
		"10.244.1.8/30":     "none",
		"10.244.1.8/32":     "none",
		"fd00:244:0:1::/64": "fd00:244:0:1::ffff",
		"fd00:244::100/120": "fd00:244::1ff",
		"fd00:244::100/127": "none",
	} {
		n := Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
		got := "none"
		if a := n.ProxyAddrs(); len(a) == 1 {
			got = a[0].String()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", cidr, got, want)
		}
	}
	two := Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), {},
		netip.MustParsePrefix("fd00::/64")}}
	if got := fmt.Sprint(two.ProxyAddrs()); got != "[10.244.1.254 fd00::ffff]" {
		t.Errorf("of both families: %s", got)
	}
}
