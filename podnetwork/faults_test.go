package podnetwork

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mount puts a disk of 64 KiB in the place of the agent's folder.
func (m *machine) mount() (dir string) {
	m.t.Helper()
	dir = m.path("state")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		m.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes all of a disk.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
}

// With a disk that is full, or cannot be written, an agent starts and starts again, its pods keep their network,
// DEL works, and ADD fails by name; with a disk again, ADD gives out no address twice.
func TestADiskThatTakesNothing(t *testing.T) {
	for what, fault := range map[string]struct {
		begin, end func(t *testing.T, dir string)
	}{
		"full": {func(t *testing.T, dir string) { fill(t, filepath.Join(dir, "ballast")) },
			func(t *testing.T, dir string) {
				if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
					t.Fatal(err)
				}
			}},
		"read-only": {func(t *testing.T, dir string) { remount(t, dir, unix.MS_RDONLY) },
			func(t *testing.T, dir string) { remount(t, dir, 0) }},
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t)
			m := c.nodes[0]
			m.stop()
			dir := m.mount()
			m.start(c.store)
			a, b := m.mustAdd("a"), m.mustAdd("b")
			m.stop() // a process that has a file open keeps a disk writable
			fault.begin(t, dir)
			for range 2 {
				m.start(c.store)
				m.stop()
			}
			m.start(c.store)
			tell(a.ns)
			expectSeen(t, m.ns, a.ips[0], netip.MustParseAddr("172.30.0.11"))
			var given []netip.Addr
			for i := range 60 { // a page of the file may have room
				p, err := m.add(fmt.Sprintf("full%d", i))
				if err != nil {
					if !strings.Contains(err.Error(), "leases") {
						t.Errorf("the error is %v", err)
					}
					break
				}
				given = append(given, p.ips...)
			}
			if _, err := m.plugin(conf, b.env("DEL")...); err != nil {
				t.Errorf("DEL: %v", err)
			}
			m.stop()
			m.start(c.store)
			fault.end(t, dir)
			given = append(given, a.ips...)
			for i := range 3 {
				p := m.mustAdd(fmt.Sprintf("later%d", i))
				for _, ip := range p.ips {
					if slices.Contains(given, ip) {
						t.Errorf("%s was given out twice", ip)
					}
				}
			}
		})
	}
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

// Whatever a crash or a disk left in the agent's files, it starts, and no living pod's address is given out.
func TestDamagedFilesStopNoAgent(t *testing.T) {
	c := newCluster(t)
	m := c.nodes[0]
	m.ingress = true
	a := m.mustAdd("a")
	files := []string{"leases", "sysctl", "proxy-addresses"}
	for i, damage := range []func([]byte) []byte{
		func([]byte) []byte { return nil },
		func(raw []byte) []byte { return raw[:1] },
		func(raw []byte) []byte { return raw[:len(raw)/2] },
		func(raw []byte) []byte { return raw[:len(raw)-1] },
		func([]byte) []byte { return []byte("\x00\xff{[\n\n]]\x00") },
		func(raw []byte) []byte { return append(raw, raw...) },
	} {
		m.stop()
		for _, name := range files {
			for _, file := range []string{name, name + ".previous"} {
				file = filepath.Join(m.path("state"), file)
				raw, err := os.ReadFile(file)
				if err != nil || len(raw) == 0 {
					raw = []byte("[]")
				}
				if err := os.WriteFile(file, damage(raw), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.start(c.store)
		p := m.mustAdd(fmt.Sprintf("p%d", i))
		if slices.Contains(p.ips, a.ips[0]) {
			t.Fatalf("damage %d: %v was given out twice", i, p.ips)
		}
		if i == 0 {
			tell(a.ns)
		}
		expectSeen(t, m.ns, a.ips[0], netip.MustParseAddr("172.30.0.11"))
	}
}
