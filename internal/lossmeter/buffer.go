package lossmeter

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// room is for what comes while the machine lets us wait: an overflow of our own socket
// would count as a loss of the network. It is many seconds of datagrams.
const room = 16 << 20

// makeRoom gives a socket that much, where it may have it.
func makeRoom(conn any) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	var forced error
	err = raw.Control(func(fd uintptr) {
		forced = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET,
			unix.SO_RCVBUFFORCE, room)
	})
	if u, ok := conn.(*net.UDPConn); ok && (err != nil || forced != nil) {
		_ = u.SetReadBuffer(room) // without the right to force it: as much as is allowed
	}
}
