package ipvs

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// kernel is a Conn of a namespace of its own.
func kernel(t *testing.T) (*testnet.NS, *Kernel) {
	t.Helper()
	ns := testnet.New(t, "node")
	k, err := NewKernel(ns.FD())
	if err != nil {
		t.Skipf("this kernel has no ip_vs (make test-vm has): %v", err)
	}
	return ns, k
}

func key(addr string, p model.Protocol, port uint16) Key {
	return Key{netip.MustParseAddr(addr), p, port}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What is set is read; setting it again changes it, and removing what is not there is
// no error.
func TestServersAndBackends(t *testing.T) {
	_, k := kernel(t)
	for _, c := range []struct{ vip, a, b string }{{"10.96.0.1", "10.244.0.1:8080", "10.244.0.2:8080"},
		{"fd96::1", "[fd44::1]:8080", "[fd44::2]:8080"}} {
		s := Server{Key: key(c.vip, model.TCP, 80), Scheduler: "rr"}
		ok(t, k.SetServer(t.Context(), s))
		for _, next := range []Server{
			{Key: s.Key, Scheduler: "wlc"},
			{Key: s.Key, Scheduler: "sh", Persistent: 90 * time.Second},
			{Key: s.Key, Scheduler: "rr"},
		} {
			ok(t, k.SetServer(t.Context(), next))
			got, err := k.Servers(t.Context())
			ok(t, err)
			if !reflect.DeepEqual(got, []Server{next}) {
				t.Errorf("servers are %v, want %v", got, next)
			}
		}
		a, b := netip.MustParseAddrPort(c.a), netip.MustParseAddrPort(c.b)
		ok(t, k.SetBackend(t.Context(), s.Key, Backend{At: b, Weight: 1}))
		ok(t, k.SetBackend(t.Context(), s.Key, Backend{At: a, Weight: 1}))
		ok(t, k.SetBackend(t.Context(), s.Key, Backend{At: a, Weight: 0}))
		got, err := k.Backends(t.Context(), s.Key)
		ok(t, err)
		if want := []Backend{{At: a}, {At: b, Weight: 1}}; !reflect.DeepEqual(got, want) {
			t.Errorf("backends are %v, want %v", got, want)
		}
		for range 2 {
			ok(t, k.DelBackend(t.Context(), s.Key, a))
		}
		if got, err = k.Backends(t.Context(), s.Key); err != nil || len(got) != 1 {
			t.Errorf("backends are %v, %v", got, err)
		}
		for range 2 {
			ok(t, k.DelServer(t.Context(), s.Key))
		}
		if got, err := k.Backends(t.Context(), s.Key); err != nil || len(got) > 0 {
			t.Errorf("of a server that is not there: %v, %v", got, err)
		}
		ok(t, k.DelBackend(t.Context(), s.Key, b))
	}
}

// Servers are told apart by protocol, and come in order of their keys; those of a mark
// are others'.
func TestServersOfAllProtocols(t *testing.T) {
	ns, k := kernel(t)
	ns.Run("ipvsadm", "-A", "-f", "7", "-s", "rr")
	want := []Server{}
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		want = append(want, Server{Key: key("10.96.0.1", p, 53), Scheduler: "rr"})
	}
	for i := range want {
		ok(t, k.SetServer(t.Context(), want[len(want)-1-i]))
	}
	got, err := k.Servers(t.Context())
	ok(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("servers are %v, want %v", got, want)
	}
}

// An error says what it is about, and what is missing.
func TestErrors(t *testing.T) {
	_, k := kernel(t)
	s := Server{Key: key("10.96.0.1", model.TCP, 80), Scheduler: "nosuch"}
	if err := k.SetServer(t.Context(), s); err == nil || !strings.Contains(err.Error(), "TCP 10.96.0.1:80") ||
		!strings.Contains(err.Error(), "modprobe ip_vs_nosuch") {
		t.Errorf("the error is %v", err)
	}
	if err := k.SetBackend(t.Context(), s.Key, Backend{At: netip.MustParseAddrPort("10.244.0.1:1"),
		Weight: 1}); err == nil || !strings.Contains(err.Error(), "TCP 10.96.0.1:80") {
		t.Errorf("a backend without a server: %v", err)
	}
}

// Addresses are on the link with scope host, so that the kernel gives none of them to
// others as source, and are not counted as the node's.
func TestAddresses(t *testing.T) {
	ns, k := kernel(t)
	const link = "vips"
	list, made, err := k.Addresses(t.Context(), link)
	if err != nil || made || len(list) > 0 {
		t.Errorf("before: %v, %t, %v", list, made, err)
	}
	a4, a6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")
	for _, a := range []netip.Addr{a4, a6, a4} {
		ok(t, k.SetAddress(t.Context(), link, a))
	}
	list, made, err = k.Addresses(t.Context(), link)
	if err != nil || !made || !reflect.DeepEqual(list, []netip.Addr{a4, a6}) {
		t.Errorf("addresses are %v, %t, %v", list, made, err)
	}
	if out := ns.Run("ip", "-4", "-o", "addr", "show", "dev", link); !strings.Contains(out, "10.96.0.1/32 scope host") {
		t.Errorf("the address is %s", out)
	}
	own, err := k.Local(t.Context(), link)
	ok(t, err)
	for _, a := range own {
		if a == a4 || a == a6 {
			t.Errorf("%s is taken for the node's own: %v", a, own)
		}
	}
	for range 2 {
		ok(t, k.DelAddress(t.Context(), link, a4))
	}
	for range 2 {
		ok(t, k.DelLink(t.Context(), link))
	}
	if _, made, err := k.Addresses(t.Context(), link); err != nil || made {
		t.Errorf("the link is still there: %v", err)
	}
}
