package testnet

import (
	"io"
	"testing"
	"time"
)

func TestTwoNamespacesTalk(t *testing.T) {
	for _, tc := range []struct{ network, a, b, target string }{
		{"tcp", "10.9.0.1/24", "10.9.0.2/24", "10.9.0.2:80"},
		{"tcp", "fd09::1/64", "fd09::2/64", "[fd09::2]:80"},
	} {
		a, b := New(t, "a"), New(t, "b")
		Veth(a, "eth0", b, "eth0")
		a.Addr("eth0", tc.a)
		b.Addr("eth0", tc.b)
		l := b.Listen(tc.network, tc.target)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			_ = c.Close()
		}()
		c, err := a.Dial(tc.network, tc.target, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		if want := c.LocalAddr().String(); string(got) != want {
			t.Errorf("peer saw %q, want %q", got, want)
		}
	}
}
