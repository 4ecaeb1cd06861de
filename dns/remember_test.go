package dns

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/statefile"
)

// A server without names would deny all of them: it gets no socket until the agent knows.
func TestAServerWithoutNamesGetsNoRememberedSockets(t *testing.T) {
	f := feedOfNull()
	f.listenedBefore([]schema.Socket{{Network: "udp", Addr: netip.MustParseAddrPort("10.7.0.1:53")}})
	for _, known := range []bool{false, true} {
		out := f.next(f.begin(handoff.Hello[schema.Socket]{Known: known}))
		u := out.Frame
		if got := len(u.Passed) == 1 && len(u.Sockets) == 1; got != known {
			t.Errorf("with names %t: sockets %v, of them passed %v", known, u.Sockets, u.Passed)
		}
		for _, file := range out.Files {
			file.Close()
		}
	}
}

// The sockets that an agent wants may be known before its names are.
func TestAServerHasNamesBeforeSockets(t *testing.T) {
	f := feedOfNull()
	f.Listen([]schema.Socket{{Network: "udp", Addr: netip.MustParseAddrPort("10.7.0.1:53")}})
	s := f.begin(handoff.Hello[schema.Socket]{})
	if u := f.next(s).Frame; len(u.Passed) > 0 {
		t.Errorf("a server without names got %v", u.Passed)
	}
	if err := f.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	out := f.next(s)
	u := out.Frame
	if len(u.Passed) != 1 || !u.Whole {
		t.Errorf("with names %t it got %v", u.Whole, u.Passed)
	}
	for _, file := range out.Files {
		file.Close()
	}
}

// feedOfNull opens files in place of sockets.
func feedOfNull() *Feed {
	return &Feed{sockets: handoff.Opener[schema.Socket]{Log: slog.New(slog.DiscardHandler),
		Open: func(schema.Socket) (*os.File, error) { return os.Open(os.DevNull) }}}
}

func TestABrokenMemoryOfThePlaceIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dns-place")
	if err := Remember(file, &Feed{}); err != nil {
		t.Errorf("no file: %v", err)
	}
	const whole = `{"vips":["10.7.0.1"],"nodes":["10.7.0.2"]}`
	broken := []string{"{", "null", "[]", "\x00\x00", whole + "x", `{"vips":["x"]}`, `{"vips":[""]}`}
	for i := range whole {
		broken = append(broken, whole[:i])
	}
	for _, text := range broken {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f := &Feed{}
		if err := Remember(file, f); err == nil || !strings.Contains(err.Error(), file) || f.before != nil {
			t.Errorf("%q: %v, sockets %v", text, err, f.before)
		}
		// The next place is written, and with a copy from before, damage costs nothing.
		p := &Placement{File: file}
		p.remember(Place{VIPs: []netip.Addr{netip.MustParseAddr("10.7.0.1")}})
		p.remember(Place{VIPs: []netip.Addr{netip.MustParseAddr("10.7.0.1")},
			Nodes: []netip.Addr{netip.MustParseAddr("10.7.0.2")}})
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Remember(file, f); err == nil || len(f.before) == 0 {
			t.Errorf("%q: the copy from before is not used: %v, %v", text, err, f.before)
		}
		if err := statefile.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	var told error
	p := &Placement{File: "/proc/no-such-folder/dns-place", Tell: func(_ string, err error) { told = err }}
	if p.remember(Place{VIPs: []netip.Addr{netip.MustParseAddr("10.7.0.1")}}); told == nil {
		t.Error("a disk that takes nothing is not told of")
	}
}
