package link

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// Setting what is there is no change: it would wake who watches for changes, who would
// set it again.
func TestSettingWhatIsThereWakesNobody(t *testing.T) {
	ns := testnet.New(t, "node")
	other := testnet.New(t, "other")
	testnet.Veth(ns, "eth0", other, "eth0")
	ns.Addr("eth0", "192.0.2.1/24")
	k, err := NewKernel(ns.FD(), filepath.Join(t.TempDir(), "addresses"))
	if err != nil {
		t.Fatal(err)
	}
	tunnel := Tunnel{Name: "vx", VNI: 7, Port: 4789, Local: netip.MustParseAddr("192.0.2.1"), MTU: 1450,
		MAC: MAC{2, 0, 0, 0, 0, 1}, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
	if err := k.SetTunnel(t.Context(), tunnel); err != nil {
		t.Fatal(err)
	}
	changed, err := k.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settled(changed)
	if err := k.SetTunnel(t.Context(), tunnel); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
		t.Error("setting the tunnel again was told as a change")
	case <-time.After(200 * time.Millisecond): // nothing is to come, so there is nothing to wait for
	}
	ns.Addr("eth0", "192.0.2.9/24")
	select {
	case <-changed:
	case <-time.After(5 * time.Second):
		t.Error("a new address was not told")
	}
}

// settled takes what was told of what went before.
func settled(changed <-chan struct{}) {
	for {
		select {
		case <-changed:
		case <-time.After(200 * time.Millisecond):
			return
		}
	}
}
