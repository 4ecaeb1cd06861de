package dataplane

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	before, err := busy()
	if err != nil {
		return 0, err
	}
	n, err := x.do(dial, time.Now().Add(d))
	after, err2 := busy()
	if err := errors.Join(err, err2); err != nil || n == 0 || after <= before {
		return 0, fmt.Errorf("%s: %v in %v of CPU: %w", x.name, n, after-before, err)
	}
	return n / (after - before), nil
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

// busy returns the seconds that the CPU of this process has worked, from /proc/stat.
func busy() (float64, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		rest, ok := strings.CutPrefix(line, fmt.Sprintf("cpu%d ", cpu))
		if !ok {
			continue
		}
		var user, nice, system, idle, iowait, irq, softirq float64
		if _, err := fmt.Sscanf(rest, "%g %g %g %g %g %g %g", &user, &nice, &system, &idle, &iowait, &irq,
			&softirq); err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		return (user + nice + system + irq + softirq) / 100, nil
	}
	return 0, errors.New("/proc/stat: no such CPU")
}

// cpu is the one that does all work: both ends, and the path.
const cpu = 1

// pin moves all threads of this process to the CPU. Threads inherit it.
func pin() error {
	var set unix.CPUSet
	set.Set(cpu)
	tasks, err := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		var id int
		if _, e := fmt.Sscan(task.Name(), &id); e == nil {
			err = errors.Join(err, unix.SchedSetaffinity(id, &set))
		}
	}
	return err
}
