package admission

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

func listener(t *testing.T, limits Limits) (*Listener, <-chan net.Conn) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(inner, limits)
	t.Cleanup(func() { _ = l.Close() })
	accepted := make(chan net.Conn, 1024)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	return l, accepted
}

func from(t *testing.T, source string, l *Listener) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// closed waits for the end of a connection.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection is open: %v", err)
	}
}

func open(t *testing.T, client, server net.Conn) {
	t.Helper()
	if _, err := client.Write([]byte{7}); err != nil {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
		t.Errorf("the connection is closed: %v", err)
	}
}

// A source at its bound displaces its own oldest connection, and no connection of another source.
func TestOneSourceDisplacesItself(t *testing.T) {
	l, accepted := listener(t, Limits{Total: 8, PerSource: 2})
	good := from(t, "127.0.0.2", l)
	goodServer := <-accepted
	var flood []net.Conn
	for range 20 {
		flood = append(flood, from(t, "127.0.0.3", l))
		<-accepted
	}
	for _, c := range flood[:18] {
		closed(t, c)
	}
	open(t, good, goodServer)
	if c := l.Counters(); c.Open != 3 || c.Displaced != 18 {
		t.Errorf("%+v, want 3 open and 18 displaced", c)
	}
}

// A full listener lets a newcomer in: the oldest connection of the source with the most goes.
func TestAFullListenerTakesANewcomer(t *testing.T) {
	l, accepted := listener(t, Limits{Total: 4, PerSource: 3})
	one := from(t, "127.0.0.2", l)
	oneServer := <-accepted
	var many []net.Conn
	for range 3 {
		many = append(many, from(t, "127.0.0.3", l))
		<-accepted
	}
	fresh := from(t, "127.0.0.4", l)
	freshServer := <-accepted
	closed(t, many[0])
	open(t, one, oneServer)
	open(t, fresh, freshServer)
	for _, c := range []net.Conn{freshServer, oneServer} {
		_ = c.Close()
		_ = c.Close() // the place is given back once
	}
	if c := l.Counters(); c.Open != 2 {
		t.Errorf("%+v, want 2 open", c)
	}
}

func TestASourceThatIsNotAllowedIsClosed(t *testing.T) {
	l, _ := listener(t, Limits{Total: 4, PerSource: 3,
		Allowed: func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.2") }})
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.3")}, Timeout: 5 * time.Second}
	if c, err := d.Dial("tcp", l.Addr().String()); err == nil { // it may be reset before dial returns
		closed(t, c)
		_ = c.Close()
	}
	if c := l.Counters(); c.Refused != 1 || c.Open != 0 {
		t.Errorf("%+v, want 1 refused", c)
	}
}
