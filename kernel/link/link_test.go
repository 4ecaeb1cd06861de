package link

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
		MAC: MAC{2, 0, 0, 0, 0, 1}, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"),
			netip.MustParseAddr("2001:db8::1")}}
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

// A memory of addresses that is damaged, or that a full disk does not take, is told of; the addresses are set
// and removed all the same, and the memory is whole again when it can be written.
func TestNoDiskStopsNoAddress(t *testing.T) {
	ns := testnet.New(t, "node")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	file := filepath.Join(dir, "addresses")
	one, two := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.96.0.11")
	var told error
	kernel := func() *Kernel {
		k, err := NewKernel(ns.FD(), file)
		if err != nil {
			t.Fatal(err)
		}
		told = nil
		k.Tell = func(_ string, err error) { told = errors.Join(told, err) }
		return k
	}
	set := func(k *Kernel, want ...netip.Addr) {
		t.Helper()
		if err := k.SetLocal(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Local(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("addresses are %v, %v, want %v", got, err, want)
		}
	}
	set(kernel(), one)
	for _, text := range []string{"", "[", `["10.96.0.1`, `["10.96.0.10"`, `[""]`, "null", "{}",
		"\x00\x00\x00", `["x"]`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		k := kernel()
		set(k, one)
		if told == nil || !strings.Contains(told.Error(), file) {
			t.Errorf("%q: told %v", text, told)
		}
		again := kernel()
		set(again, two)
		set(again, one)
		if told != nil {
			t.Errorf("%q: the file was not mended: %v", text, told)
		}
	}
	ballast := filepath.Join(dir, "ballast")
	full, err := os.Create(ballast)
	for err == nil {
		_, err = full.Write(make([]byte, 4096))
	}
	full.Close()
	k := kernel()
	set(k, two)
	if !errors.Is(told, unix.ENOSPC) {
		t.Errorf("on a full disk: told %v", told)
	}
	set(k) // and it is known to be ours
	set(k, one, two)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	set(k, one)
	set(kernel(), two)
	if out := ns.Run("ip", "-o", "addr", "show", "dev", "lo"); strings.Contains(out, one.String()) {
		t.Errorf("an address was forgotten: %s", out)
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
