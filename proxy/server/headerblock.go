package server

import "wayleave.dev/proxy/h1"

// headerBlocks follows the frames that a client of HTTP/2 sends (RFC 9113, 4.1), to see whether it owes the
// rest of a header block. Such a connection waits, as one of HTTP/1.1 with a head in part does: the server of
// x/net collects up to 32 KiB of it.
type headerBlocks struct {
	skip int // of the client's preface
	head [9]byte
	have int // bytes of head that are here
	left int // bytes of the frame's payload that are to come
	// block says that the frame is of a header block, open that its last frame has not come to its end.
	block, open bool
}

// Frames of a header block, and the flag of its last one.
const (
	frameHeaders      = 1
	frameContinuation = 9
	flagEndHeaders    = 4
)

// took follows what came, and says whether a header block is open.
func (f *headerBlocks) took(p []byte) bool {
	n := min(f.skip, len(p))
	f.skip, p = f.skip-n, p[n:]
	for len(p) > 0 {
		if n := min(f.left, len(p)); n > 0 {
			f.left, p = f.left-n, p[n:]
		} else {
			n := copy(f.head[f.have:], p)
			if f.have, p = f.have+n, p[n:]; f.have < len(f.head) {
				break
			}
			f.have = 0
			f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
			if f.block = f.head[3] == frameHeaders || f.head[3] == frameContinuation; f.block {
				f.open = true
			}
		}
		if f.left == 0 && f.block && f.head[4]&flagEndHeaders != 0 {
			f.open = false
		}
	}
	return f.open
}

// read tells a connection's state what came of frames.
func (k *conn) read(f *headerBlocks, p []byte) {
	open := f.took(p)
	switch phase, _ := k.state.Look(); {
	case open && phase == h1.Idle:
		k.state.To(h1.Waiting)
	case !open && phase == h1.Waiting:
		k.state.To(h1.Idle)
	}
}
