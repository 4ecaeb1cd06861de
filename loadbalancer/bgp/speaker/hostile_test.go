package speaker

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/bgp"
)

// message is one of BGP: marker, length, type, body.
func message(kind byte, body []byte) []byte {
	m := make([]byte, 19, 19+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	binary.BigEndian.PutUint16(m[16:], uint16(19+len(body)))
	m[18] = kind
	return append(m, body...)
}

// open is that of a peer with an ASN of two bytes, without capabilities.
func open(asn uint16) []byte {
	body := []byte{4, byte(asn >> 8), byte(asn), 0, 90, 10, 9, 0, 254, 0}
	return message(1, body)
}

// update announces a prefix.
func update(attrs []byte, nlri []byte) []byte {
	body := []byte{0, 0, byte(len(attrs) >> 8), byte(len(attrs))}
	return message(2, append(append(body, attrs...), nlri...))
}

var goodAttributes = []byte{0x40, 1, 1, 0, 0x40, 2, 4, 2, 1, 0xfd, 0xe8, 0x40, 3, 4, 10, 9, 0, 254}

// hostile is a peer that the test plays. It waits for the node to connect.
type hostile struct {
	t *testing.T
	l net.Listener
}

func newHostile(w *rack) *hostile {
	h := &hostile{t: w.t}
	w.router.Must(func() (err error) {
		h.l, err = net.Listen("tcp", "10.9.0.254:179")
		return err
	})
	w.t.Cleanup(func() { _ = h.l.Close() })
	return h
}

// session accepts a connection and says OPEN and KEEPALIVE.
func (h *hostile) session(asn uint16) net.Conn {
	h.t.Helper()
	_ = h.l.(*net.TCPListener).SetDeadline(time.Now().Add(40 * time.Second))
	c, err := h.l.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	go func() { _, _ = io.Copy(io.Discard, c) }()
	_, _ = c.Write(open(asn))
	_, _ = c.Write(message(4, nil))
	return c
}

// memory is what the process has in use, in bytes.
func memory(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// A peer that sends more prefixes than are allowed, by itself or with all others, has no session. The process stays
// small and has its other sessions.
func TestAFloodOfPrefixesEndsTheSession(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]uint32{"of one peer": 0, "of all peers": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newRack(t, 2)
			n := w.nodes[0]
			h := newHostile(w)
			good := testnet.NewBIRD(w.nodes[1].ns, bird(w.nodes[:1], ""))
			state := n.state(toRouter(router4), "192.0.2.10/32")
			state.Sessions[0].MaxPrefixes = limit
			s := toRouter(w.nodes[1].addr[0])
			s.Name = "BGPPeer good"
			state.Sessions = append(state.Sessions, s)
			state.Classes[0].Sessions = append(state.Classes[0].Sessions, s.Name)
			n.start(state)
			has(t, good, "192.0.2.10/32")
			c := h.session(routerASN)
			n.established("BGPPeer router")
			n.established("BGPPeer good")
			pid, since := n.now().PID, n.since("BGPPeer good")
			flood(c)
			testnet.Eventually(t, 4*time.Minute, func() error {
				x, _ := n.session("BGPPeer router")
				if x.State == bgp.Established || !strings.Contains(x.Error, "more prefixes") {
					return fmt.Errorf("%+v", x)
				}
				return nil
			})
			if got := memory(t, pid); got > Memory {
				t.Errorf("the process has %d MiB", got>>20)
			}
			if n.now().PID != pid || !n.since("BGPPeer good").Equal(since) {
				t.Error("the other session was lost")
			}
		})
	}
}

// flood announces prefixes until the connection ends, 500 in each message.
func flood(c net.Conn) {
	_ = c.SetWriteDeadline(time.Now().Add(4 * time.Minute))
	for i := 0; i < 1<<21; {
		var nlri []byte
		for range 500 {
			nlri = append(nlri, 32, byte(20+i>>16), byte(i>>8), byte(i), 1)
			i++
		}
		if _, err := c.Write(update(goodAttributes, nlri)); err != nil {
			return
		}
	}
}

// Malformed messages end only the session of their sender.
func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	w := newRack(t, 2)
	n := w.nodes[0]
	h := newHostile(w)
	good := testnet.NewBIRD(w.nodes[1].ns, bird(w.nodes[:1], ""))
	state := n.state(toRouter(router4), "192.0.2.10/32")
	s := toRouter(w.nodes[1].addr[0])
	s.Name = "BGPPeer good"
	state.Sessions = append(state.Sessions, s)
	state.Classes[0].Sessions = append(state.Classes[0].Sessions, s.Name)
	n.start(state)
	has(t, good, "192.0.2.10/32")
	n.established("BGPPeer good")
	pid, since := n.now().PID, n.since("BGPPeer good")
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 3 {
		c := h.session(routerASN)
		n.established("BGPPeer router")
		for range 200 {
			attrs := append([]byte(nil), goodAttributes...)
			for range 1 + random.IntN(4) {
				attrs[random.IntN(len(attrs))] = byte(random.Uint32())
			}
			if _, err := c.Write(update(attrs, []byte{32, 198, 51, 100, byte(round)})); err != nil {
				break
			}
		}
		_, _ = c.Write([]byte(strings.Repeat("\x00", 64)))
		testnet.Eventually(t, 40*time.Second, func() error {
			if x, _ := n.session("BGPPeer router"); x.State == bgp.Established || x.Error == "" {
				return fmt.Errorf("%+v", x)
			}
			return nil
		})
		_ = c.Close()
	}
	if n.now().PID != pid || !n.since("BGPPeer good").Equal(since) {
		t.Error("the other session was lost")
	}
	if err := hasNow(good, "192.0.2.10/32"); err != nil {
		t.Error(err)
	}
}

// The process has one capability, and cannot gain others.
func TestTheProcessHasOneCapability(t *testing.T) {
	t.Parallel()
	w := newRack(t, 1)
	n := w.nodes[0]
	n.start(n.state(toRouter(router4)))
	testnet.Eventually(t, 30*time.Second, func() error {
		if len(n.now().Sessions) == 0 {
			return fmt.Errorf("%+v", n.now())
		}
		return nil
	})
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.now().PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapPrm:\t0000000000000400", "CapEff:\t0000000000000400", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("want %q in\n%s", want, raw)
		}
	}
}
