package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/statefile"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
)

// An agent that starts while the API server is away knows nothing: a server that starts
// then, too, has its names from its last snapshot, and its sockets from where the earlier
// agent served. Once the agent knows better, that counts.
func TestSocketsAreRememberedForAStartWithoutTheAPIServer(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "state", "dns-place")
	stopAgent := r.agent()
	stopServer := r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	p := &Placement{Service: name("kube-system/kube-dns"), Feed: &Feed{}, Net: &link.Fake{}, NFT: nft.NewFake(),
		File: file, Forwarding: func([]netip.Addr) Forwarding { return Forwarding{} }}
	place := Place{VIPs: []netip.Addr{netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("fd07::1")},
		Nodes: []netip.Addr{netip.MustParseAddr("10.7.0.1")}}
	if err := p.Sync(t.Context(), map[model.Name]Place{p.Service: place}); err != nil {
		t.Fatal(err)
	}
	stopAgent()
	stopServer()

	r.before = file
	r.agentThat(false)
	r.server()
	for _, to := range []string{"10.7.0.1:53", "[fd07::1]:53", fmt.Sprintf("10.7.0.1:%d", NodePort)} {
		for _, network := range []string{"udp", "tcp"} {
			r.expect(network, to, backendName, "NOERROR: A 10.96.100.50")
		}
	}
	r.configure(r.feed)
	testnet.Eventually(t, 10*time.Second, func() error {
		if _, err := r.ask("udp", "", fmt.Sprintf("10.7.0.1:%d", NodePort), backendName, dns.TypeA); err == nil {
			return fmt.Errorf("a socket that is no longer wanted answers")
		}
		return nil
	})
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
}

// A server without names would deny all of them: it gets no socket until the agent knows.
func TestAServerWithoutNamesGetsNoRememberedSockets(t *testing.T) {
	f := feedOfNull()
	f.listenedBefore([]Socket{{"udp", netip.MustParseAddrPort("10.7.0.1:53")}})
	for _, known := range []bool{false, true} {
		out := f.next(f.begin(handoff.Hello[Socket]{Known: known}))
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
	f.Listen([]Socket{{"udp", netip.MustParseAddrPort("10.7.0.1:53")}})
	s := f.begin(handoff.Hello[Socket]{})
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
	return &Feed{sockets: handoff.Opener[Socket]{Log: slog.New(slog.DiscardHandler),
		Open: func(Socket) (*os.File, error) { return os.Open(os.DevNull) }}}
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
		p.remember(Place{VIPs: []netip.Addr{addr("10.7.0.1")}})
		p.remember(Place{VIPs: []netip.Addr{addr("10.7.0.1")}, Nodes: []netip.Addr{addr("10.7.0.2")}})
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
	if p.remember(Place{VIPs: []netip.Addr{addr("10.7.0.1")}}); told == nil {
		t.Error("a disk that takes nothing is not told of")
	}
}
