package h1

import (
	"os"
	"syscall"
	"unsafe"
)

// ready is called by RawConn.Read when the socket may have something to read, and at first;
// false waits. A connection that waits has no buffer.
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
	return true // of an error, await sees that nothing is here
}

// readNow and writeNow read and write what a socket has and takes, and never wait. So the runtime
// need not be told, which costs as much as parsing a head: it would give the processor to another
// thread when the kernel takes longer than some 20 µs, as it does to pass a message on to the
// other end of a loopback connection.
func readNow(fd int, p []byte) (n int, err error) {
	return now(syscall.SYS_RECVFROM, fd, p, syscall.MSG_DONTWAIT)
}

// pending says whether a socket has something to read, or has ended. It reads nothing.
func pending(fd int, scratch *[1]byte) bool {
	_, err := now(syscall.SYS_RECVFROM, fd, scratch[:], syscall.MSG_DONTWAIT|syscall.MSG_PEEK)
	return err != errAgain
}

func writeNow(fd int, p []byte) (n int, err error) {
	return now(syscall.SYS_SENDTO, fd, p, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
}

// writeBoth is writeNow of two parts, of which the second may be empty.
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

// errAgain says that there is nothing to read, or no room to write to.
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

// ask sends a request and reads its answer in one call of RawConn.Read. The poller is asked to tell of
// the answer before the request goes out, so the wait can come before the first read; net.Conn.Read
// reads first, for nothing. leave says that there is something of an answer, or that the usual way must
// go on. That an endpoint ended its side while the connection was idle, and no more than
// its side, is seen late, by ErrPatience; else its reset tells.
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
	return true // an error comes again in the usual way
}
