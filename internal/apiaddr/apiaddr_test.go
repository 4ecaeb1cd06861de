package apiaddr

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"

	netutils "k8s.io/utils/net"
)

func TestAddressesOfOldObjects(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.10": "192.0.2.10", "192.000.002.010": "192.0.2.10", "010.0.0.8": "10.0.0.8",
		"203.0.113.009":  "203.0.113.9",
		"10.0000000.0.1": "10.0.0.1", "2001:db8::1": "2001:db8::1", "2001:0db8:00000:0::00001": "2001:db8::1",
		"2001:DB8::A": "2001:db8::a", "::ffff:192.0.2.1": "192.0.2.1", "::ffff:192.000.002.001": "192.0.2.1",
		"::ffff:c000:201": "192.0.2.1", "64:ff9b::192.0.2.033": "64:ff9b::c000:221",
		"": "", " 192.0.2.1": "", "192.0.2.1 ": "", "192.0.2": "", "192.0.2.256": "", "192.0.2.0x1": "",
		"192.0.2.1.1": "",
		"0300.0.2.1":  "", "fe80::1%eth0": "", "fe80::01%eth0": "", "::1::": "", "12345::": "", "web": "",
		"192.0.2.1/32": "", "1": "",
	} {
		a, err := ParseAddr(in)
		if got := text(a, err); got != want {
			t.Errorf("%q became %q (%v), want %q", in, got, err, want)
		}
	}
}

func TestCIDRsOfOldObjects(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.0/24": "192.0.2.0/24", "010.0.0.0/8": "10.0.0.0/8", "10.010.000.0/016": "10.10.0.0/16",
		"10.1.2.3/08":   "10.1.2.3/8",
		"2001:db8::/32": "2001:db8::/32", "2001:0db8:00000::/032": "2001:db8::/32", "::/0": "::/0",
		"0.0.0.0/0": "0.0.0.0/0", "0.0.0.0/00": "0.0.0.0/0",
		"::ffff:192.0.2.0/120": "192.0.2.0/24", "::ffff:10.0.0.0/104": "10.0.0.0/8", "::ffff:0.0.0.0/96": "0.0.0.0/0",
		"::ffff:192.0.2.1/128": "192.0.2.1/32",
		"::ffff:192.0.2.0/24":  "", "::ffff:0.0.0.0/95": "", "192.0.2.0": "", "192.0.2.0/33": "", "192.0.2.0/": "",
		"/24": "", "192.0.2.0/-1": "",
		"192.0.2.0/+8": "", "192.0.2.0/8/8": "", "fe80::%eth0/64": "", "2001:db8::/129": "", "": "", "lan": "",
		" 10.0.0.0/8": "", "0300.0.0.0/8": "",
	} {
		p, err := ParsePrefix(in)
		if got := text(p, err); got != want {
			t.Errorf("%q became %q (%v), want %q", in, got, err, want)
		}
	}
}

func text(v fmt.Stringer, err error) string {
	if err != nil {
		return ""
	}
	return v.String()
}

// spelled is text that may be an address or a CIDR, in odd spellings.
func spelled(r *rand.Rand) string {
	zeros := func() string { return strings.Repeat("0", r.IntN(4)*r.IntN(2)) }
	v4 := func() string {
		var parts []string
		for range 4 - r.IntN(12)/11 {
			parts = append(parts, zeros()+fmt.Sprint(r.IntN(300)))
		}
		return strings.Join(parts, ".")
	}
	s := v4()
	switch r.IntN(6) {
	case 0:
		s = "::ffff:" + s
	case 1:
		var parts []string
		for range 1 + r.IntN(8) {
			parts = append(parts, zeros()+fmt.Sprintf("%x", r.IntN(0x10010)))
		}
		s = strings.Join(parts, ":")
		if i := r.IntN(len(s) + 1); r.IntN(2) == 0 {
			s = s[:i] + "::" + s[i:]
		}
	case 2:
		i := r.IntN(len(s) + 1)
		s = s[:i] + string(" 0.:%/x8"[r.IntN(8)]) + s[i:]
	}
	if r.IntN(2) == 0 {
		s += "/" + zeros() + fmt.Sprint(r.IntN(140))
	}
	return s
}

// Whatever the spelling, the value is that of k8s.io/utils/net.
func TestReadAsKubernetesReads(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 9))
	good := 0
	for range 200_000 {
		if judge(t, spelled(r)) {
			good++
		}
	}
	if good < 50_000 {
		t.Errorf("only %d of the texts are addresses or CIDRs", good)
	}
}

func FuzzReadAsKubernetesReads(f *testing.F) {
	for _, s := range []string{"192.000.2.1", "::ffff:192.0.2.1", "10.1.2.3/08", "::ffff:10.0.0.0/104",
		"fe80::1%eth0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { judge(t, s) })
}

// judge compares both readers, and says whether s is something to them.
func judge(t *testing.T, s string) bool {
	t.Helper()
	ip := netutils.ParseIPSloppy(s)
	a, err := ParseAddr(s)
	if (ip == nil) != (err != nil) || ip != nil && a.String() != ip.String() || ip != nil &&
		a.Is4() != (ip.To4() != nil) {
		t.Errorf("address %q: %v %v, Kubernetes reads %v", s, a, err, ip)
	}
	if b, strict := netip.ParseAddr(s); strict == nil && b.Zone() == "" && b.Unmap() != a {
		t.Errorf("address %q: %v, net/netip reads %v", s, a, b)
	}
	_, n, kerr := netutils.ParseCIDRSloppy(s)
	p, err := ParsePrefix(s)
	if kerr == nil && err == nil && !sameNet(p, n) {
		t.Errorf("CIDR %q: %v, Kubernetes reads %v", s, p, n)
	}
	// A CIDR across the border of the mapped addresses has no meaning in either.
	text, _, _ := strings.Cut(s, "/")
	across := kerr == nil && n.IP.To4() == nil && netutils.ParseIPSloppy(text).To4() != nil
	if (kerr == nil) != (err == nil) && !across {
		t.Errorf("CIDR %q: %v %v, Kubernetes says %v %v", s, p, err, n, kerr)
	}
	return ip != nil || kerr == nil
}

func sameNet(p netip.Prefix, n *net.IPNet) bool { return p.Masked().String() == n.String() }
