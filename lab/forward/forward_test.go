package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"wayleave.dev/lab/fabric"
)

func TestConnectionsReachTheNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root (CAP_SYS_ADMIN)")
	}
	name := fmt.Sprintf("wlt-forward-%d", os.Getpid())
	if err := fabric.Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fabric.Delete(name); err != nil {
			t.Error(err)
		}
	})
	var inside net.Listener
	err := fabric.Do(name, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		inside, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go echo(inside)

	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, front, name, netip.MustParseAddrPort(inside.Addr().String()),
			slog.New(slog.DiscardHandler))
	}()
	conn, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "through"); err != nil {
		t.Fatal(err)
	}
	// The half that is closed is carried on too.
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "through" {
		t.Errorf("got %q, %v", got, err)
	}
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// echo sends one connection's bytes back when it has all of them.
func echo(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	data, err := io.ReadAll(conn)
	if err == nil {
		_, _ = conn.Write(data)
	}
}
