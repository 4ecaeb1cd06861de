package link

import (
	"context"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/namespace"
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
	return namespace.Do(k.nsfd, func() error {
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
