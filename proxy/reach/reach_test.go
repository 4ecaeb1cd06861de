package reach

import (
	"net/netip"
	"testing"
)

func TestSpecialAddresses(t *testing.T) {
	for _, tc := range []struct {
		addr    string
		special bool
	}{
		{"127.0.0.1", true}, {"127.8.9.10", true}, {"::1", true}, {"::ffff:127.0.0.1", true}, {"::127.0.0.1", true},
		{"64:ff9b::7f00:1", true}, {"64:ff9b::a9fe:a9fe", true}, {"64:ff9b:1::7f00:1", true}, {"2002:7f00:1::1", true},
		{"2002:a9fe:a9fe::", true}, {"::ffff:0:7f00:1", true},
		{"0.0.0.0", true}, {"0.1.2.3", true}, {"::", true}, {"::ffff:0.0.0.0", true},
		{"169.254.169.254", true}, {"169.254.1.1", true}, {"fe80::1", true}, {"fe80::1%eth0", true},
		{"::ffff:169.254.169.254", true},
		{"fd00:ec2::254", true}, {"fd20:ce::254", true}, {"100.100.100.200", true}, {"168.63.129.16", true},
		{"192.0.0.192", true},
		{"224.0.0.1", true}, {"ff02::1", true}, {"255.255.255.255", true},
		{"10.0.0.1", false}, {"192.168.1.1", false}, {"100.64.0.1", false}, {"8.8.8.8", false}, {"fd00::1", false},
		{"2001:db8::1", false}, {"64:ff9b::808:808", false}, {"240.1.2.3", false},
	} {
		if got := Special(netip.MustParseAddr(tc.addr)); (got != "") != tc.special {
			t.Errorf("%s: %q, want special %v", tc.addr, got, tc.special)
		}
	}
	if Special(netip.Addr{}) == "" {
		t.Error("no address is an address")
	}
}

func TestPolicyRefusesNodes(t *testing.T) {
	p := &Policy{Refused: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.8/29"), netip.MustParsePrefix("2001:db8::2/128")}}
	for addr, ok := range map[string]bool{
		"192.0.2.1": false, "::ffff:192.0.2.1": false, "64:ff9b::c000:201": false, "2002:c000:201::5": false,
		"2001:db8::1": false, "2001:db8::1%eth0": false,
		"198.51.100.77": true, "2001:db8::3": true, "127.0.0.1": false, "127.0.0.9": true, "::ffff:127.0.0.9": true,
		"2001:db8::2": true,
	} {
		if err := p.Check(netip.MustParseAddr(addr)); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
	var none Policy
	own, err := none.own.addresses()
	if err != nil {
		t.Fatal(err)
	}
	for a := range own {
		if none.Check(a) == nil {
			t.Errorf("%s of this machine may be asked", a)
		}
	}
	if none.Check(netip.Addr{}) == nil {
		t.Error("no address may be asked")
	}
}
