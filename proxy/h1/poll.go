package h1

import (
	"os"
	"syscall"
	"unsafe"
)

// ready is called by RawConn.Read when the socket may be readable, and once at first; false waits. A waiting connection
// has no buffer.
func (k *serverConn) ready(fd uintptr) (leave bool) {
	rd := &k.rd
	if rd.buf == nil && rd.grow(rd.limit) != nil {
		return true
	}
	n, err := readNow(int(fd), rd.buf[rd.w:])
	if err == errAgain {
		rd.release()
		return false
	}
	if err == nil && n > 0 {
		rd.w += n
	}
	return true // on an error, await sees that nothing arrived
}

// readNow and writeNow read and write as much as the socket allows, and never block. The Go runtime is not told of
// these system calls, since that costs as much as parsing a head: it would hand the processor to another thread when
// the kernel takes longer than about 20 µs, as it does when it delivers a message over loopback.
func readNow(fd int, p []byte) (n int, err error) {
	return now(syscall.SYS_RECVFROM, fd, p, syscall.MSG_DONTWAIT)
}

// pending reports whether a socket is readable or closed. It reads nothing.
func pending(fd int, scratch *[1]byte) bool {
	_, err := now(syscall.SYS_RECVFROM, fd, scratch[:], syscall.MSG_DONTWAIT|syscall.MSG_PEEK)
	return err != errAgain
}

func writeNow(fd int, p []byte) (n int, err error) {
	return now(syscall.SYS_SENDTO, fd, p, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
}

// writeBoth is writeNow for two buffers, of which the second may be empty.
func writeBoth(fd int, p, q []byte) (n int, err error) {
	if len(q) == 0 {
		return writeNow(fd, p)
	}
	list := [2]syscall.Iovec{{Base: unsafe.SliceData(p)}, {Base: unsafe.SliceData(q)}}
	list[0].SetLen(len(p))
	list[1].SetLen(len(q))
	m := syscall.Msghdr{Iov: &list[0], Iovlen: 2}
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)),
			syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		if errno != syscall.EINTR {
			return result(n, errno)
		}
	}
}

func now(call uintptr, fd int, p []byte, flags uintptr) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))),
			uintptr(len(p)), flags, 0, 0)
		if errno != syscall.EINTR {
			return result(n, errno)
		}
	}
}

func result(n uintptr, errno syscall.Errno) (int, error) {
	switch errno {
	case 0:
		return int(n), nil
	case syscall.EAGAIN:
		return 0, errAgain
	}
	return 0, os.NewSyscallError("socket", errno)
}

// errAgain means that there is nothing to read, or no room to write.
var errAgain error = syscall.EAGAIN

// push is how a writer writes to a socket; false waits for room.
func (w *writer) push(fd uintptr) (done bool) {
	for before := len(w.out) + len(w.next); len(w.out) > 0; {
		n, err := writeBoth(int(fd), w.out, w.next)
		if err == errAgain {
			if w.full = w.state != nil; w.full {
				w.state.Owes(before - len(w.out) - len(w.next))
			}
			return false
		}
		if err != nil {
			w.err = err
			return true
		}
		if w.sent = true; n < len(w.out) {
			w.out = w.out[n:]
		} else {
			w.out, w.next = w.next[n-len(w.out):], nil
		}
	}
	if w.full {
		w.full = false
		w.state.To(Busy)
	}
	return true
}

// ask sends a request and reads its answer in one call of RawConn.Read. The poller is armed before the request is sent,
// so it can wait before the first read; net.Conn.Read would make a useless read first. leave means that a part of the
// answer has arrived, or that the normal path must continue. If an endpoint only closed its side while the connection
// was idle, that is noticed late, by ErrPatience; otherwise a reset shows it.
func (u *Client) ask(fd uintptr) (leave bool) {
	if u.pending {
		u.pending = false
		b := *u.w.buf
		n, err := writeNow(int(fd), b)
		if err == errAgain {
			n, err = 0, nil
		}
		if err != nil {
			u.w.err = err
			return true
		}
		u.w.sent = u.w.sent || n > 0
		if n < len(b) {
			*u.w.buf = b[:copy(b, b[n:])]
			return true
		}
		*u.w.buf = b[:0]
		u.sent = true
		return false
	}
	rd := &u.rd
	if rd.buf == nil && rd.grow(rd.limit) != nil {
		return true
	}
	n, err := readNow(int(fd), rd.buf[rd.w:])
	if err == errAgain {
		return false
	}
	if err == nil && n > 0 {
		rd.w += n
	}
	return true // the normal path gets the same error again
}
