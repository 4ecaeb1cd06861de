package process

import (
	"net"
	"net/netip"
	"testing"
)

// Connections come from the address that policies know, and from the node's own where
// that cannot be had.
func TestConnectionsComeFromTheProxysAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var s source
	for _, tc := range []struct {
		name  string
		addrs []netip.Addr
		want  string
	}{
		{"none set", nil, "127.0.0.1"},
		{"one of the family", []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("127.0.0.9")},
			"127.0.0.9"},
		{"one of the other family", []netip.Addr{netip.MustParseAddr("fd00::1")}, "127.0.0.1"},
		{"one that is not the node's", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, "127.0.0.1"},
	} {
		s.set(tc.addrs)
		c, err := s.dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := c.LocalAddr().(*net.TCPAddr).IP.String(); got != tc.want {
			t.Errorf("%s: it comes from %s, want %s", tc.name, got, tc.want)
		}
		c.Close()
	}
}

// A question goes out from the address that policies know, or not at all: the node's own
// passes every policy.
func TestQuestionsComeFromTheProxysAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var s source
	for _, tc := range []struct {
		name  string
		addrs []netip.Addr
		node  bool
		want  string
	}{
		{"none set", nil, false, ""},
		{"one of the family", []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("127.0.0.9")},
			false, "127.0.0.9"},
		{"one of the family, and the node's would do", []netip.Addr{netip.MustParseAddr("127.0.0.9")},
			true, "127.0.0.9"},
		{"one of the other family", []netip.Addr{netip.MustParseAddr("fd00::1")}, false, ""},
		{"one that is not the node's", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, false, ""},
		{"one that is not the node's, and the node's would do", []netip.Addr{netip.MustParseAddr("192.0.2.1")}, true,
			""},
		{"another program makes the pod network", nil, true, "127.0.0.1"},
	} {
		s.set(tc.addrs)
		s.node.Store(tc.node)
		got := ""
		c, err := s.ask(t.Context(), "tcp", l.Addr().String())
		if err == nil {
			got = c.LocalAddr().(*net.TCPAddr).IP.String()
			c.Close()
		}
		if got != tc.want {
			t.Errorf("%s: it comes from %q (%v), want %q", tc.name, got, err, tc.want)
		}
	}
}
