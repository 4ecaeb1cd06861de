package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

// begin makes connections, one after the other, until some began by redirection; it fails if none does.
func (r *rig) begin(from *testnet.NS, to netip.AddrPort) {
	r.t.Helper()
	testnet.Eventually(r.t, 30*time.Second, func() error {
		before := r.redirected().Begun
		for range 3 {
			if err := r.turn(from, to); err != nil {
				return err
			}
		}
		if r.redirected().Begun == before {
			return fmt.Errorf("no connection from %s to %s began by redirection", from.Name, to)
		}
		return nil
	})
}

// turn makes a connection, sends a byte, reads it back and closes.
func (r *rig) turn(from *testnet.NS, to netip.AddrPort) error {
	c, err := from.Dial("tcp", to.String(), 30*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	return pingPong(c)
}

func pingPong(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// tracked lists connections to an address and port.
func (r *rig) tracked(to netip.AddrPort) string {
	family := "ipv4"
	if to.Addr().Is6() {
		family = "ipv6"
	}
	out, _ := r.node.Try("conntrack", "-L", "-f", family, "-p", "tcp", "-d", to.Addr().String(), "--dport",
		fmt.Sprint(to.Port()))
	return out
}

// Once the stack has accepted a connection, further ones to the same port begin by redirection, on one node and between
// nodes, in both families and both roles. Connection tracking has each, and finds no packet invalid.
func TestConnectionsBeginByRedirection(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	for _, ns := range []*testnet.NS{r.a, r.b, r.c} {
		echo(ns)
	}
	for _, ends := range [][2]*testnet.NS{{r.a, r.b}, {r.a, r.c}, {r.c, r.a}} {
		for _, to := range []netip.Addr{r.addr[ends[1]], r.addr6[ends[1]]} {
			at := netip.AddrPortFrom(to, 7)
			r.begin(ends[0], at)
			before := r.redirected().Begun
			const n = 50
			for range n {
				if err := r.turn(ends[0], at); err != nil {
					t.Fatal(err)
				}
			}
			if got := r.redirected().Begun - before; got < n/2 {
				t.Errorf("%d of %d connections to %s began by redirection", got, n, at)
			}
			testnet.Eventually(t, 30*time.Second, func() error {
				out := r.tracked(at)
				if got := strings.Count(out, "TIME_WAIT"); got < n || strings.Contains(out, "NONE") {
					return fmt.Errorf("of more than %d connections, %d ended as they should:\n%s", n, got, out)
				}
				return nil
			})
		}
	}
	r.noneInvalid()
}

// A port where nobody listens refuses connections as it does without redirection, and a reset ends one.
func TestResetsAreRedirected(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	for _, ends := range [][2]*testnet.NS{{r.a, r.b}, {r.a, r.c}, {r.c, r.a}} {
		at := netip.AddrPortFrom(r.addr[ends[1]], 7)
		l := ends[1].Listen("tcp", ":7")
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = c.Write([]byte("hello")); _, _ = c.Read(make([]byte, 9)); c.Close() }()
			}
		}()
		r.begin(ends[0], at)
		before := r.redirected().Begun
		for range 20 {
			c, err := ends[0].Dial("tcp", at.String(), 30*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if err := pingPong(c); err != nil {
				t.Fatal(err)
			}
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
		testnet.Eventually(t, 30*time.Second, func() error {
			out := r.tracked(at)
			for line := range strings.Lines(out) {
				var family string
				var number, seconds int
				if _, err := fmt.Sscanf(line, "%s %d %d", &family, &number, &seconds); err == nil && seconds > 120 {
					return fmt.Errorf("a connection that was reset is kept: %s", line)
				}
			}
			return nil
		})
		l.Close()
		for range 5 {
			start := time.Now()
			_, err := ends[0].Dial("tcp", at.String(), 20*time.Second)
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("to a closed port after %s: %v", time.Since(start), err)
			}
		}
		if r.redirected().Begun-before < 10 {
			t.Errorf("%d connections began by redirection", r.redirected().Begun-before)
		}
	}
	r.noneInvalid()
}

// Changes of rules have the stack decide again, and so does a change of pods. Programs of an earlier process begin no
// connections once rules change, and none while programs are removed.
func TestDecisionsAreRevoked(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	at := netip.AddrPortFrom(r.addr[r.b], 7)
	none := func(when string, k *Kernel, revoke func() error) {
		t.Helper()
		r.begin(r.a, at)
		if err := revoke(); err != nil {
			t.Fatal(err)
		}
		before, err := k.Redirected()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.turn(r.a, at); err != nil {
			t.Fatal(err)
		}
		if after, _ := k.Redirected(); after.Begun != before.Begun {
			t.Errorf("%s: a connection began as was allowed before", when)
		}
	}
	none("after a change of rules", r.kernel, r.kernel.Revoke)
	none("after a change of pods", r.kernel, func() error {
		s := r.state()
		s.Pods[0].Addrs = s.Pods[0].Addrs[:1]
		r.set(s)
		return nil
	})
	first := r.kernel
	next := &Kernel{NSFD: r.node.FD()}
	none("when the next process changes rules", first, next.Revoke)
	before, _ := first.Redirected()
	for range 20 {
		if err := r.turn(r.a, at); err != nil {
			t.Fatal(err)
		}
	}
	if after, _ := first.Redirected(); after.Begun != before.Begun || after.Local == before.Local {
		t.Errorf("programs of the earlier process had redirected %+v and then %+v", before, after)
	}
	r.kernel = next
	r.set(r.state())
	r.begin(r.a, at)
	none("after the next process has changed rules again", next, next.Revoke)
	r.begin(r.a, at)
	if err := next.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.turn(r.a, at); err != nil {
		t.Error(err)
	}
	if err := next.Revoke(); err != nil {
		t.Error(err)
	}
}

// silent has b drop what comes from source ports from 61000, which sockets get only if they ask for them.
func (r *rig) silent() {
	r.b.Run("nft", "add table ip q; add chain ip q i { type filter hook input priority 0; }; "+
		"add rule ip q i tcp sport 61000-61999 drop")
}

// send sends a segment without data from a pod.
func send(from *testnet.NS, src, dst netip.AddrPort, flags byte) {
	from.Must(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		raw := frame(false, unix.IPPROTO_TCP, 0, func(ip []byte) {
			copy(ip[12:], src.Addr().AsSlice())
			copy(ip[16:], dst.Addr().AsSlice())
			binary.BigEndian.PutUint16(ip[20:], src.Port())
			binary.BigEndian.PutUint16(ip[22:], dst.Port())
			ip[33] = flags
		})[14:]
		return unix.Sendto(fd, raw, 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
	})
}

// The answer to the first packet of a connection that policy forbids meanwhile is dropped. Without the mark it passes.
func TestAForbiddenConnectionIsNotAnswered(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	r.silent()
	to := netip.AddrPortFrom(r.addr[r.b], 7)
	for i, marked := range []bool{false, true} {
		var from netip.AddrPort
		testnet.Eventually(t, 30*time.Second, func() error {
			from = netip.AddrPortFrom(r.addr[r.a], from.Port()+1)
			if from.Port() < 61000 {
				from = netip.AddrPortFrom(r.addr[r.a], uint16(61000+100*i))
			}
			r.begin(r.a, to)
			before := r.redirected().Begun
			send(r.a, from, to, 2) // SYN
			if r.redirected().Begun == before {
				return errors.New("the SYN was not redirected")
			}
			return nil
		})
		if marked {
			r.node.Run("conntrack", "-U", "-p", "tcp", "-d", to.Addr().String(), "--dport", "7", "--sport",
				fmt.Sprint(from.Port()), "-m", "0x80000000")
		}
		before := r.redirected()
		send(r.b, to, from, 0x12) // SYN, ACK
		after := r.redirected()
		if dropped := after.Dropped - before.Dropped; (dropped == 1) != marked || dropped > 1 {
			t.Errorf("marked %t: %d answers were dropped", marked, dropped)
		}
		if passed := after.Local - before.Local; (passed > 0) == marked {
			t.Errorf("marked %t: %d packets passed", marked, passed)
		}
	}
}

// A client whose SYN was redirected and lost sends another one, which meets the rules.
func TestALostSYNIsSentAgain(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	r.silent()
	to := netip.AddrPortFrom(r.addr[r.b], 7)
	done := make(chan error, 100)
	before, port := uint64(0), 61000
	for begin := time.Now(); r.redirected().Begun == before; port++ {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("no SYN was redirected")
		}
		r.begin(r.a, to)
		before = r.redirected().Begun
		from := fmt.Sprintf("%s:%d", r.addr[r.a], port)
		go func() {
			c, err := r.a.DialFrom("tcp", from, to.String(), time.Minute)
			if err == nil {
				err = pingPong(c)
				c.Close()
			}
			done <- err
		}()
		time.Sleep(100 * time.Millisecond)
	}
	r.b.Run("nft", "delete table ip q")
	for ; port > 61000; port-- {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	r.noneInvalid()
}

// A port that is used again soon after a reset or an end has a new connection.
func TestAPortIsUsedAgain(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	to := netip.AddrPortFrom(r.addr[r.b], 7)
	r.a.Sysctl("net/ipv4/ip_local_port_range", "40000 40003")
	r.a.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	for i := range 40 {
		c, err := r.a.Dial("tcp", to.String(), 20*time.Second)
		if err == nil {
			err = pingPong(c)
		}
		if err != nil {
			t.Fatalf("connection %d: %v; there are\n%s", i, err, r.tracked(to))
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// A SYN of a connection that exists tells nothing of the rules that hold: the stack lets it pass as established.
func TestAnOlderConnectionTeachesNothing(t *testing.T) {
	r := newRig(t)
	r.set(r.state())
	echo(r.b)
	to := netip.AddrPortFrom(r.addr[r.b], 7)
	c, err := r.a.Dial("tcp", to.String(), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := pingPong(c); err != nil {
		t.Fatal(err)
	}
	if err := r.kernel.Revoke(); err != nil {
		t.Fatal(err)
	}
	before := r.redirected().Begun
	send(r.a, c.LocalAddr().(*net.TCPAddr).AddrPort(), to, 2) // SYN
	time.Sleep(150 * time.Millisecond)                        // an answer is used for a tenth of a second
	for range 3 {
		if err := pingPong(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.turn(r.a, to); err != nil {
		t.Fatal(err)
	}
	if n := r.redirected().Begun - before; n > 0 {
		t.Errorf("%d connections began as an older connection was allowed", n)
	}
}
