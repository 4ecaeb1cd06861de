package h1

import "syscall"

// ready is called by RawConn.Read when the socket may have something to read, and at first;
// false waits. A connection that waits has no buffer.
func (k *serverConn) ready(fd uintptr) (leave bool) {
	rd := &k.rd
	if rd.buf == nil && rd.grow(rd.limit) != nil {
		return true
	}
	n, err := readNow(int(fd), rd.buf[rd.w:])
	if err == syscall.EAGAIN {
		rd.release()
		return false
	}
	if err == nil && n > 0 {
		rd.w += n
	}
	return true // of an error, await sees that nothing is here
}

// readNow reads what is there.
func readNow(fd int, p []byte) (n int, err error) {
	for {
		if n, err = syscall.Read(fd, p); err != syscall.EINTR {
			return n, err
		}
	}
}

// writeNow writes what the socket takes.
func writeNow(fd int, p []byte) (n int, err error) {
	for {
		if n, err = syscall.Write(fd, p); err != syscall.EINTR {
			return n, err
		}
	}
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
		if err == syscall.EAGAIN {
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
	if err == syscall.EAGAIN {
		return false
	}
	if err == nil && n > 0 {
		rd.w += n
	}
	return true // an error comes again in the usual way
}
