package hostile

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// A flood keeps its connections, from each of its sources, and opens those anew that the server closes.
func TestAFloodKeepsItsConnections(t *testing.T) {
	server, client := testnet.New(t, "server"), testnet.New(t, "client")
	testnet.Veth(server, "eth0", client, "eth0")
	server.Addr("eth0", "10.7.0.1/24")
	for _, a := range []string{"10.7.0.2/24", "10.7.0.3/24"} {
		client.Addr("eth0", a)
	}
	from := make(chan string, 1000)
	server.Serve("tcp", "10.7.0.1:53", func(c net.Conn) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		from <- host
		if n, _ := io.ReadFull(c, make([]byte, 2)); n == 2 && len(from) > 10 {
			_, _ = io.Copy(io.Discard, c)
		}
	})
	f := &Flood{NS: client, Target: "10.7.0.1:53", Connections: 10,
		Sources: []netip.Addr{netip.MustParseAddr("10.7.0.2"), netip.MustParseAddr("10.7.0.3")},
		Do:      Slow([]byte("abc"), time.Millisecond)}
	stop := f.Start(t)
	testnet.Eventually(t, 20*time.Second, func() error {
		if f.Open() != 10 || f.Closed() < 9 || f.Sent() < 100 {
			return fmt.Errorf("%d open, %d closed, %d bytes", f.Open(), f.Closed(), f.Sent())
		}
		return nil
	})
	stop()
	seen := map[string]int{}
	for len(from) > 0 {
		seen[<-from]++
	}
	if seen["10.7.0.2"] < 5 || seen["10.7.0.3"] < 5 {
		t.Errorf("connections came from %v", seen)
	}
	if f.Open() != 0 {
		t.Errorf("%d connections are left", f.Open())
	}
}

// A SYN whose handshake is never completed stays in the listener's queue.
func TestHalfOpenConnections(t *testing.T) {
	server, client := testnet.New(t, "server"), testnet.New(t, "client")
	testnet.Veth(server, "eth0", client, "eth0")
	server.Addr("eth0", "10.7.0.1/24")
	client.Addr("eth0", "10.7.0.2/24")
	client.Router()
	server.Route("10.99.0.0/16", "10.7.0.2")
	server.Listen("tcp", "10.7.0.1:53")
	testnet.Eventually(t, 20*time.Second, func() error {
		HalfOpen(t, client, netip.MustParsePrefix("10.99.0.0/16"), netip.MustParseAddrPort("10.7.0.1:53"), 20)
		if out := server.Run("ss", "-Htn", "state", "syn-recv"); len(out) < 100 {
			return fmt.Errorf("half-open are %q", out)
		}
		return nil
	})
}

// The meter sees what a process takes.
func TestMemoryOfAProcess(t *testing.T) {
	pid := os.Getpid()
	before := Resident(t, pid)
	ResetPeak(t, pid)
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = 1
	}
	if got := Peak(t, pid) - before; got < 60<<20 {
		t.Errorf("64 MiB more are %d bytes; the last byte is %d", got, b[len(b)-1])
	}
	if Descriptors(t, pid) < 3 {
		t.Error("a process without files")
	}
}

// A client counts what it was not given.
func TestAWellBehavedClient(t *testing.T) {
	n := 0
	c, stop := Ask(t, time.Millisecond, func() error {
		if n++; n%2 == 0 {
			return io.EOF
		}
		return nil
	})
	testnet.Eventually(t, 10*time.Second, func() error {
		if asked, failed, err := c.Counts(); asked < 10 || failed < 4 || err != io.EOF {
			return fmt.Errorf("%d asked, %d failed, %w", asked, failed, err)
		}
		return nil
	})
	stop()
}
