package connectivity

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve starts a server named "a" at an address, and returns those of its sockets.
func serve(t *testing.T, host string) (tcp, udp string) {
	t.Helper()
	s, err := Listen(host, "0", "0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, "a") }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.tcp.Addr().String(), s.udp[0].LocalAddr().String()
}

// one makes a probe within a few seconds.
func one(t *testing.T, p Probe) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	p.ID = "x"
	got := Try(ctx, []Probe{p})
	if len(got) != 1 || got[0].ID != "x" {
		t.Fatalf("%+v", got)
	}
	return got[0].Error
}

func TestProbesOfARealServer(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		tcp, udp := serve(t, host)
		for _, p := range []Probe{{Kind: HTTP, To: tcp, Want: []string{"a"}}, {Kind: HTTP, To: tcp, Host: "some.host"},
			{Kind: Large, To: tcp}, {Kind: UDP, To: udp, Want: []string{"a"}}, {Kind: Path, To: udp}} {
			if got := one(t, p); got != "" {
				t.Errorf("%s at %s: %s", p.Kind, p.To, got)
			}
		}
		for _, p := range []Probe{{Kind: HTTP, To: tcp, Want: []string{"b"}},
			{Kind: UDP, To: udp, Want: []string{"b"}}} {
			if got := one(t, p); !strings.Contains(got, `"a" answers`) {
				t.Errorf("%s, answered by the wrong pod: %q", p.Kind, got)
			}
		}
	}
}

// refusing is an address that no other server gets, and on which none listens.
func refusing(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(at.(*syscall.SockaddrInet4).Port))
}

func TestProbesOfADeniedServer(t *testing.T) {
	t.Parallel()
	away := refusing(t)
	open, _ := serve(t, "127.0.0.1")
	for _, tc := range []struct {
		p    Probe
		want string
	}{
		{Probe{Kind: HTTP, To: away}, "refused"},
		{Probe{Kind: HTTP, To: away, Denied: true}, ""},
		{Probe{Kind: HTTP, To: open, Denied: true}, "must be denied"},
		{Probe{Kind: "other", To: open}, "not known"},
	} {
		if got := one(t, tc.p); (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%+v: %q; want %q", tc.p, got, tc.want)
		}
	}
}

// A connection that is denied only now and then is not denied.
func TestADenialMustLast(t *testing.T) {
	t.Parallel()
	tcp, _ := serve(t, "127.0.0.1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if n%2 == 0 {
					return // this one is denied
				}
				up, err := net.Dial("tcp", tcp)
				if err != nil {
					return
				}
				defer up.Close()
				go func() { _, _ = up.(*net.TCPConn).ReadFrom(c) }()
				_, _ = c.(*net.TCPConn).ReadFrom(up)
			}()
		}
	}()
	if got := one(t, Probe{Kind: HTTP, To: l.Addr().String(), Denied: true}); got == "" {
		t.Error("every second connection is served, and counts as denied")
	}
}

// A path that swallows large datagrams without a word is found, and one that cuts them.
func TestABlackHoleForLargePackets(t *testing.T) {
	t.Parallel()
	_, udp := serve(t, "127.0.0.1")
	if got := one(t, Probe{Kind: Path, To: udp}); got != "" {
		t.Fatalf("of a good path: %s", got)
	}
	for name, most := range map[string]int{"swallows": 0, "cuts": 1000} {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, maxDatagram)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				if n <= 1000 || most > 0 {
					_, _ = c.WriteTo(buf[:min(n, 1000)], from)
				}
			}
		}()
		if got := one(t, Probe{Kind: UDP, To: c.LocalAddr().String()}); got != "" {
			t.Errorf("%s: small datagrams: %s", name, got)
		}
		if got := one(t, Probe{Kind: Path, To: c.LocalAddr().String()}); !strings.Contains(got, "a datagram of") {
			t.Errorf("%s: large datagrams: %q", name, got)
		}
	}
}

func TestTheDomainOfASearchList(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"nameserver 10.96.0.10\nsearch shop.svc.cluster.test svc.cluster.test cluster.test\n": "cluster.test",
		"search example.com\n": "", "": "", "search\n": "", "search svc.\n": "",
	} {
		file := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := domainIn(file); got != want {
			t.Errorf("%q: %q; want %q", text, got, want)
		}
	}
	if got := domainIn(filepath.Join(t.TempDir(), "none")); got != "" {
		t.Errorf("without a file: %q", got)
	}
}
