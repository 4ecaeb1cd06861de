package lossmeter

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// room is the buffer for datagrams that arrive while this process has no CPU: an overflow of its own socket would count
// as a loss of the network. It holds many seconds of datagrams.
const room = 16 << 20

// makeRoom sets a socket's buffer to room, if permitted.
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
		_ = u.SetReadBuffer(room) // without the capability to force it: as much as is permitted
	}
}
