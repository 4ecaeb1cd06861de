package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
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

func cidrs(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func key(i int) Key { return Key{fmt.Sprintf("c%d", i), "eth0"} }

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func open(t *testing.T, dir string, c *clock) *LeaseStore {
	t.Helper()
	b := Open(dir, time.Minute, c.now, nil)
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func newClock() *clock { return &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

func TestALeaseOutlivesTheProcess(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	b := open(t, dir, c)
	l, known, err := b.Acquire(key(1), LeaseRequest{Pod: "default/web", HostLink: "wl1"},
		cidrs("10.244.1.0/24", "fd00:244:0:1::/64"))
	if err != nil || known || fmt.Sprint(l.IPs) != "[10.244.1.2 fd00:244:0:1::2]" {
		t.Fatalf("%+v %v %v", l, known, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "leases")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v", info, err)
	}
	again := open(t, dir, c) // no Close before: that is a kill
	got, known, err := again.Acquire(key(1), LeaseRequest{}, cidrs("10.244.1.0/24"))
	if err != nil || !known || fmt.Sprint(got) != fmt.Sprint(l) {
		t.Errorf("%+v %v %v", got, known, err)
	}
	if next, _, _ := again.Acquire(key(2), LeaseRequest{}, cidrs("10.244.1.0/24")); next.IPs[0] == l.IPs[0] {
		t.Error("the address was given out twice")
	}
}

// A follower of the leases knows of a change before the call that made it returns.
func TestLeasesAreFollowed(t *testing.T) {
	b := open(t, t.TempDir(), newClock())
	if _, _, err := b.Acquire(key(1), LeaseRequest{Pod: "default/web"}, cidrs("10.244.1.0/24")); err != nil {
		t.Fatal(err)
	}
	var told string
	b.Follow(func(list []Lease) {
		told = ""
		for _, l := range list {
			told += fmt.Sprint(l.Pod, l.IPs)
		}
	})
	expect := func(want string) {
		t.Helper()
		if told != want {
			t.Errorf("told %s, want %s", told, want)
		}
	}
	expect("default/web[10.244.1.2]")
	if _, _, err := b.Acquire(key(2), LeaseRequest{Pod: "default/db"}, cidrs("10.244.1.0/24")); err != nil {
		t.Fatal(err)
	}
	expect("default/web[10.244.1.2]default/db[10.244.1.3]")
	if _, _, err := b.Release(key(1)); err != nil {
		t.Fatal(err)
	}
	expect("default/db[10.244.1.3]")
	if err := b.Adopt("wl9", []netip.Addr{netip.MustParseAddr("10.244.1.9")}); err != nil {
		t.Fatal(err)
	}
	expect("default/db[10.244.1.3][10.244.1.9]")
}

// The address of the node's ingress proxy is given to nobody, nor on request. Who has it from
// before keeps it.
func TestTheProxysAddressIsLeasedToNobody(t *testing.T) {
	b := open(t, t.TempDir(), newClock())
	net := cidrs("10.244.1.0/29", "fd00::/125")
	proxies := []netip.Addr{netip.MustParseAddr("10.244.1.6"), netip.MustParseAddr("fd00::7")}
	for i := range 5 {
		l, _, err := b.Acquire(key(i), LeaseRequest{}, net)
		if full := (ExhaustedError{}); i == 4 && !errors.As(err, &full) || i < 4 && err != nil {
			t.Fatal(i, l, err)
		}
		for _, a := range proxies {
			if slices.Contains(l.IPs, a) {
				t.Errorf("%s was leased", a)
			}
		}
	}
	for i, a := range proxies {
		if _, _, err := b.Acquire(key(9), LeaseRequest{IPs: []netip.Addr{a}}, net[i:i+1]); err == nil ||
			!strings.Contains(err.Error(), "ingress proxy") {
			t.Errorf("request for %s: %v", a, err)
		}
	}
	if err := b.Adopt("wl1", proxies); err != nil {
		t.Errorf("a pod that had it before: %v", err)
	}
}

func TestAnAddressCoolsDown(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	b := open(t, dir, c)
	net := cidrs("10.244.1.0/29") // .2 to .5
	for i := range 4 {
		if _, _, err := b.Acquire(key(i), LeaseRequest{}, net); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := b.Acquire(key(9), LeaseRequest{}, net)
	var full ExhaustedError
	if !errors.As(err, &full) || !strings.Contains(err.Error(), "10.244.1.0/29 is full: 4 addresses") {
		t.Fatalf("error is %v", err)
	}
	for _, i := range []int{3, 1} {
		if _, ok, err := b.Release(key(i)); !ok || err != nil {
			t.Fatal(ok, err)
		}
		c.at = c.at.Add(time.Second)
	}
	b = open(t, dir, c) // the cool-down outlives a restart
	l, _, err := b.Acquire(key(10), LeaseRequest{}, net)
	if err != nil || l.IPs[0].String() != "10.244.1.5" {
		t.Errorf("with nothing else left the oldest, 10.244.1.5, was expected: %+v, %v", l, err)
	}
	c.at = c.at.Add(2 * time.Minute)
	if l, _, err = b.Acquire(key(11), LeaseRequest{}, net); err != nil || l.IPs[0].String() != "10.244.1.3" {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestATornLineIsDroppedAndABadOneIsNamed(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	b := open(t, dir, c)
	if _, _, err := b.Acquire(key(1), LeaseRequest{}, cidrs("10.244.1.0/24")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "leases")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(good, `{"add":{"contai`...), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir, c).List(); len(got) != 1 {
		t.Errorf("leases are %v", got)
	}
	changed := strings.Replace(string(good), "10.244.1.2", "10.244.1.9", 1)
	twice := strings.Split(strings.ReplaceAll(string(good), "c1", "c2"), `,"sum"`)[0] + "}\n"
	for _, bad := range []string{"{\n" + string(good), string(good) + "{}\n", string(good) + twice, changed +
		string(good), `{"add":{"container":"x","ips":[]}}` + "\n" + string(good)} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		var told error
		b := Open(dir, time.Minute, c.now, func(_ string, err error) { told = err })
		if told == nil || !strings.Contains(told.Error(), "leases line ") {
			t.Errorf("%s: told %v", bad, told)
		}
		if l, known, err := b.Acquire(key(1), LeaseRequest{}, cidrs("10.244.1.0/24")); err != nil || !known ||
			l.IPs[0] != netip.MustParseAddr("10.244.1.2") {
			t.Errorf("%s: the good line is lost: %v, %v, %v", bad, l, known, err)
		}
		if l, _, err := b.Acquire(key(7), LeaseRequest{}, cidrs("10.244.1.0/24")); err != nil ||
			l.IPs[0] == netip.MustParseAddr("10.244.1.2") {
			t.Errorf("%s: an address is given out twice: %v, %v", bad, l, err)
		}
		if again := open(t, dir, c); len(again.List()) < 2 {
			t.Errorf("%s: the file was not mended: %v", bad, again.List())
		}
	}
}

// On a full disk no address is given out, those that are leased stay, DEL frees, and all goes on when there is
// room. What was freed meanwhile is nobody's until that is on disk.
func TestAFullDiskStopsOnlyNewLeases(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a mount needs root (CAP_SYS_ADMIN)")
	}
	dir, c, net := t.TempDir(), newClock(), cidrs("10.244.1.0/24")
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	b := open(t, dir, c)
	given := map[string]Key{}
	acquire := func(i int) error {
		l, _, err := b.Acquire(key(i), LeaseRequest{}, net)
		if err == nil {
			if other, twice := given[l.IPs[0].String()]; twice && other != l.Key {
				t.Errorf("%s was given to %v and %v", l.IPs[0], other, l.Key)
			}
			given[l.IPs[0].String()] = l.Key
		}
		return err
	}
	for i := range 20 {
		if err := acquire(i); err != nil {
			t.Fatal(err)
		}
	}
	ballast := filepath.Join(dir, "ballast")
	fill := func() {
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		for _, err = f.Write(make([]byte, 4096)); err == nil; _, err = f.Write(make([]byte, 4096)) {
		}
		f.Close()
	}
	fill()
	n := 20
	for ; n < 200; n++ { // what is left of a page of the file is used first
		if acquire(n) != nil {
			break
		}
	}
	if err := acquire(n); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("on a full disk: %v", err)
	}
	if _, ok, err := b.Release(key(3)); !ok || err != nil {
		t.Errorf("DEL on a full disk: %v, %v", ok, err)
	}
	delete(given, "10.244.1.5")
	b.Close()
	for range 2 { // and starts again, and again
		b = open(t, dir, c)
		if got := len(b.List()); got < n-1 {
			t.Fatalf("%d leases after a start on a full disk, want %d", got, n-1)
		}
	}
	if err := acquire(300); err == nil {
		t.Log("a page had room")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := acquire(301); err != nil {
		t.Errorf("with room: %v", err)
	}
	b.Close()
	b = open(t, dir, c)
	if l, known, err := b.Acquire(key(301), LeaseRequest{}, net); err != nil || !known {
		t.Errorf("it is not on disk: %v, %v, %v", l, known, err)
	}
}

// A clock that is set by an hour, either way, ends no cool-down before its time: not in a process, where
// the monotonic clock counts, and not over a restart.
func TestAClockThatIsSetEndsNoCoolDown(t *testing.T) {
	net := cidrs("10.244.1.0/24")
	for _, step := range []time.Duration{time.Hour, -time.Hour, 0} {
		dir, c := t.TempDir(), newClock()
		b := open(t, dir, c)
		l, _, err := b.Acquire(key(1), LeaseRequest{}, net)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Release(key(1)); err != nil {
			t.Fatal(err)
		}
		b.Close()
		c.at = c.at.Add(step)
		b = open(t, dir, c)
		for i := range 252 { // all others are used first
			got, _, err := b.Acquire(key(10+i), LeaseRequest{}, net)
			if err != nil {
				t.Fatal(err)
			}
			if got.IPs[0] == l.IPs[0] {
				t.Fatalf("%v: address %d given out is the one that cools down", step, i)
			}
			if i == 250 {
				break
			}
		}
		b.Close()
	}
	b := Open(t.TempDir(), time.Minute, nil, nil)
	defer b.Close()
	if _, _, err := b.Acquire(key(1), LeaseRequest{}, net); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Release(key(1)); err != nil {
		t.Fatal(err)
	}
	if since := b.freed[netip.MustParseAddr("10.244.1.2")].since; !strings.Contains(since.String(), "m=") {
		t.Errorf("a cool-down runs by the wall clock: %v", since)
	}
}

// TestRandomSteps compares the leases with a plain model through 10,000 random
// leases, releases and kills: nothing leaks, nothing is double. A file in memory is synchronized at once.
func TestRandomSteps(t *testing.T) {
	dir, c := testnet.MemoryDir(t), newClock()
	b := open(t, dir, c)
	net := cidrs("10.244.1.0/25", "fd00::/64")
	model := map[Key]string{}
	rng := rand.New(rand.NewPCG(1, 2))
	for step := range 10_000 {
		c.at = c.at.Add(time.Duration(rng.IntN(5000)) * time.Millisecond)
		k := key(rng.IntN(150))
		switch rng.IntN(20) {
		case 0:
			b.Close()
			b = open(t, dir, c)
		case 1, 2, 3, 4, 5, 6, 7, 8, 9:
			_, ok, err := b.Release(k)
			if _, want := model[k]; err != nil || ok != want {
				t.Fatalf("step %d: release %v: %v %v", step, k, ok, err)
			}
			delete(model, k)
		default:
			l, _, err := b.Acquire(k, LeaseRequest{}, net)
			if errors.As(err, &ExhaustedError{}) && len(model) >= 125 {
				continue
			}
			if err != nil {
				t.Fatalf("step %d: %v with %d leases", step, err, len(model))
			}
			if have, ok := model[k]; ok && have != fmt.Sprint(l.IPs) {
				t.Fatalf("step %d: %v had %s, got %v", step, k, have, l.IPs)
			}
			model[k] = fmt.Sprint(l.IPs)
		}
	}
	seen := map[string]Key{}
	for k, ips := range model {
		if other, ok := seen[ips]; ok {
			t.Errorf("%s is leased to %v and %v", ips, k, other)
		}
		seen[ips] = k
	}
	if got := len(b.List()); got != len(model) {
		t.Errorf("%d leases, the model has %d", got, len(model))
	}
}
