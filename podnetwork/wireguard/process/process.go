// Package process is WireGuard in user space: the process of one device. It reads packets of strangers, so it has no
// capabilities. The agent opens the tun device and passes its descriptor.
//
// Invariants:
//   - The process goes on without the agent. It ends with its device, which `ip link del` or an uninstall removes.
//   - When it ends otherwise, the device stays and drops what is sent to it: nothing leaves in plain.
package process

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
	"wayleave.dev/podnetwork/wireguard/frames"
)

// Main is the main function of the process.
func Main() error { return child.Main(frames.Process, run) }

// maxAtOnce bounds the connections by which the process is configured.
const maxAtOnce = 8

func run(agent *net.UnixConn, log *slog.Logger) error {
	var h frames.Hello
	files, err := frame.Receive(agent, &h)
	if err != nil {
		return fmt.Errorf("hello of the agent: %w", err)
	}
	if len(files) != 2 {
		return fmt.Errorf("hello of the agent: found %d descriptors; allowed: a tun device and a socket", len(files))
	}
	l, err := net.FileListener(files[1])
	_ = files[1].Close() // FileListener made a copy
	if err != nil {
		return fmt.Errorf("socket of %s: %w", h.Name, err)
	}
	dev, err := open(files[0], h, log)
	if err != nil {
		return err
	}
	go serve(l, dev)
	if err := frame.Send(agent, h, nil); err != nil {
		return fmt.Errorf("answer to the agent: %w", err)
	}
	_ = agent.Close()
	log.Info("encrypting", "device", h.Name, "port", h.Port)
	<-dev.Wait()
	return nil
}

// open makes the device of a tun descriptor, which it owns from then on.
func open(file *os.File, h frames.Hello, log *slog.Logger) (*device.Device, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("tun device %s: %w", h.Name, err)
	}
	t, name, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("tun device %s: %w", h.Name, err)
	}
	if name != h.Name {
		return nil, errors.Join(fmt.Errorf("tun device: found %s; allowed: %s", name, h.Name), t.Close())
	}
	dev := device.NewDevice(checksummed{t}, conn.NewDefaultBind(), loggerOf(log))
	if err := dev.IpcSet(fmt.Sprintf("listen_port=%d\n", h.Port)); err != nil {
		dev.Close()
		return nil, fmt.Errorf("device %s: %w", h.Name, err)
	}
	if err := dev.Up(); err != nil {
		dev.Close()
		return nil, fmt.Errorf("device %s: UDP port %d: %w", h.Name, h.Port, err)
	}
	return dev, nil
}

// loggerOf logs faults at most once a second: packets may cause them.
func loggerOf(log *slog.Logger) *device.Logger {
	var last atomic.Int64
	return &device.Logger{
		Verbosef: func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...)) },
		Errorf: func(format string, args ...any) {
			if now, then := time.Now().Unix(), last.Load(); now != then && last.CompareAndSwap(then, now) {
				log.Warn(fmt.Sprintf(format, args...))
			}
		}}
}

// serve lets the agent, and no other user, configure the device. A device that is closed ends the process.
func serve(l net.Listener, dev *device.Device) {
	turns := make(chan struct{}, maxAtOnce)
	for {
		c, err := l.Accept()
		if err != nil {
			time.Sleep(time.Second) // too many open files
			continue
		}
		u, ok := c.(*net.UnixConn)
		if !ok || frame.Only(u, uint32(os.Getuid())) != nil {
			_ = c.Close()
			continue
		}
		turns <- struct{}{}
		go func() {
			defer func() { <-turns }()
			dev.IpcHandle(c)
		}()
	}
}
