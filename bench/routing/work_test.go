package routing

import (
	"io"
	"net"
	"net/netip"
	"time"

	"wayleave.dev/bench/internal/cpu"
)

// work is one kind of traffic; do returns how much was done until a time.
type work struct {
	name, unit string
	scale      float64
	port       uint16
	do         func(c net.Conn, until time.Time) (float64, error)
}

var works = []work{{"bytes", "GB", 1e9, 81, stream}, {"requests", "requests", 1, 82, pingPong}}

// serve answers both kinds.
func (w *world) serve() {
	w.server.Serve("tcp", ":81", func(c net.Conn) {
		for buf := make([]byte, 256<<10); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	w.server.Serve("tcp", ":82", func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// per returns how much is done per CPU-second.
func (w *world) per(x work, d time.Duration) (float64, error) {
	c, err := w.client.Dial("tcp", netip.AddrPortFrom(w.to, x.port).String(), 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return cpu.Per(x.name, func() (float64, error) { return x.do(c, time.Now().Add(d)) })
}

func stream(c net.Conn, until time.Time) (n float64, err error) {
	for buf := make([]byte, 128<<10); time.Now().Before(until); {
		k, err := c.Write(buf)
		if n += float64(k); err != nil {
			return n, err
		}
	}
	return n, nil
}

func pingPong(c net.Conn, until time.Time) (n float64, err error) {
	for buf := make([]byte, 1); time.Now().Before(until); n++ {
		if _, err := c.Write(buf); err != nil {
			return n, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return n, err
		}
	}
	return n, nil
}
