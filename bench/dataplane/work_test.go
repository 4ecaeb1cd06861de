package dataplane

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"wayleave.dev/bench/internal/cpu"
)

// window is how many datagrams are on their way at once.
const window = 32

// work is one kind of traffic; do returns how much was done until a time.
type work struct {
	name, unit string
	scale      float64
	port       uint16
	do         func(dial func() (net.Conn, error), until time.Time) (float64, error)
	network    string
}

func works() []work {
	return []work{
		{"bytes", "GB", 1e9, 81, stream, "tcp"},
		{"requests", "requests", 1, 82, pingPong, "tcp"},
		{"new connections", "connections", 1, 83, connect, "tcp"},
		{"small packets", "datagrams", 1, 84, datagrams, "udp"},
	}
}

// serve answers all kinds of traffic.
func (w *world) serve() {
	w.server.Serve("tcp", ":81", func(c net.Conn) {
		for buf := make([]byte, 256<<10); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	for _, port := range []string{":82", ":83"} {
		w.server.Serve("tcp", port, func(c net.Conn) {
			for buf := make([]byte, 1); ; {
				if _, err := io.ReadFull(c, buf); err != nil {
					return
				}
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		})
	}
	p := w.server.ListenPacket("udp", ":84").(*net.UDPConn)
	go func() {
		for buf := make([]byte, 2048); ; {
			n, from, err := p.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

// per returns how much is done per CPU-second.
func (w *world) per(x work, d time.Duration) (float64, error) {
	dial := func() (net.Conn, error) {
		return w.client.Dial(x.network, netip.AddrPortFrom(w.to, x.port).String(), 2*time.Second)
	}
	return cpu.Per(x.name, func() (float64, error) { return x.do(dial, time.Now().Add(d)) })
}

func stream(dial func() (net.Conn, error), until time.Time) (n float64, err error) {
	c, err := dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	for buf := make([]byte, 128<<10); time.Now().Before(until); {
		k, err := c.Write(buf)
		if n += float64(k); err != nil {
			return n, err
		}
	}
	return n, nil
}

func pingPong(dial func() (net.Conn, error), until time.Time) (n float64, err error) {
	c, err := dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	for ; time.Now().Before(until); n++ {
		if err := turn(c); err != nil {
			return n, err
		}
	}
	return n, nil
}

func turn(c net.Conn) error {
	buf := make([]byte, 1)
	if _, err := c.Write(buf); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf)
	return err
}

// connect makes a connection for each request. It ends them by a reset, so that no port stays in TIME_WAIT.
func connect(dial func() (net.Conn, error), until time.Time) (n float64, err error) {
	for ; time.Now().Before(until); n++ {
		c, err := dial()
		if err == nil {
			err = errors.Join(turn(c), c.(*net.TCPConn).SetLinger(0), c.Close())
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// datagrams sends 64 bytes, some at once, and waits for the answers.
func datagrams(dial func() (net.Conn, error), until time.Time) (n float64, err error) {
	c, err := dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(until.Add(2 * time.Second)); err != nil {
		return 0, err
	}
	for buf := make([]byte, 64); time.Now().Before(until); {
		for range window {
			if _, err := c.Write(buf); err != nil {
				return n, err
			}
		}
		for range window {
			if _, err := c.Read(buf); err != nil {
				return n, err
			}
			n += 2
		}
	}
	return n, nil
}
