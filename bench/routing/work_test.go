package routing

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
	before, err := busy()
	if err != nil {
		return 0, err
	}
	n, err := x.do(c, time.Now().Add(d))
	after, err2 := busy()
	if err := errors.Join(err, err2); err != nil || n == 0 || after <= before {
		return 0, fmt.Errorf("%s: %v in %v of CPU: %w", x.name, n, after-before, err)
	}
	return n / (after - before), nil
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

// cpu is the one that does all work: both ends, both nodes, and processes of WireGuard in user space.
const cpu = 1

// busy returns the seconds that the CPU has worked, from /proc/stat.
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

// pin moves all threads of this process to the CPUs. Threads and children inherit it.
func pin(cpus ...int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		var id int
		if _, e := fmt.Sscan(task.Name(), &id); e == nil {
			err = errors.Join(err, unix.SchedSetaffinity(id, &set))
		}
	}
	return err
}
