package lossmeter

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// room is what a socket keeps of datagrams that its program has not read yet: seconds of
// them. On a busy machine a program may have to wait for a CPU for longer than the
// default lasts, and what its own socket drops then would be counted against the network.
const room = 8 << 20

// makeRoom asks for it past the machine's limit, which takes CAP_NET_ADMIN, else up to it.
func makeRoom(c any) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return // a test's own
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	// Without it, the meter counts as much or more.
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, room)
		}
	})
}
