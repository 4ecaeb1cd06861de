package link

import (
	"context"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtool commands (linux/ethtool.h).
const (
	ethtoolGetTxChecksum = 0x16
	ethtoolSetTxChecksum = 0x17
)

// SetChecksumOffload implements Net: the ethtool switch tx-checksum of a link.
func (k *Kernel) SetChecksumOffload(_ context.Context, name string, on bool) error {
	want := uint32(0)
	if on {
		want = 1
	}
	return InNamespace(k.nsfd, func() error {
		have, err := ethtool(name, ethtoolGetTxChecksum, 0)
		if err == nil && have != want {
			_, err = ethtool(name, ethtoolSetTxChecksum, want)
		}
		if err != nil {
			return fmt.Errorf("checksum offload of %s: %w", name, err)
		}
		return nil
	})
}

// ethtool does one call that takes and gives a number (struct ethtool_value).
func ethtool(name string, command, data uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{command, data}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return 0, errno
	}
	return value.data, nil
}

// InNamespace runs fn on a thread of its own in a network namespace, given by a descriptor; 0 is that of the process,
// where the caller's thread runs fn.
func InNamespace(nsfd int, fn func() error) error {
	if nsfd == 0 {
		return fn()
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Setns(nsfd, unix.CLONE_NEWNET); err == nil {
			err = fn()
		}
	}()
	<-done
	return err
}
