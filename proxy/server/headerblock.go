package server

import (
	"errors"

	"wayleave.dev/proxy/h1"
)

// headerBlocks parses the frames that a client of HTTP/2 sends (RFC 9113, 4.1), to detect an incomplete header block.
// Such a connection counts as waiting, like one of HTTP/1.1 with an incomplete head: the server of x/net buffers up to
// 32 KiB of it.
type headerBlocks struct {
	skip int // remaining bytes of the client's preface
	head [9]byte
	have int // received bytes of head
	left int // missing bytes of the frame's payload
	// block means that the frame belongs to a header block, open that the last frame of the block is incomplete.
	block, open bool
	// frames counts those of this header block, idle those since the last request or byte of a body.
	frames, idle int
}

// Bounds of frames that cost a client almost nothing: of one header block, and of consecutive frames without content
// (RFC 9113, 10.5): empty DATA, SETTINGS, PRIORITY, and unknown types. The server of x/net bounds the bytes of a block,
// and frames that need a reply, but not empty frames.
const (
	mostBlockFrames = 64
	mostIdleFrames  = 1000
)

var errFlood = errors.New("HTTP/2: too many frames without content")

// flood reports whether a client sent too many frames without content.
func (f *headerBlocks) flood() bool { return f.frames > mostBlockFrames || f.idle > mostIdleFrames }

// begins processes the frame whose header has arrived.
func (f *headerBlocks) begins() {
	f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
	kind := f.head[3]
	f.block = kind == frameHeaders || kind == frameContinuation
	switch {
	case kind == frameHeaders:
		f.frames, f.idle, f.open = 1, 0, true
	case kind == frameContinuation:
		f.frames++
		f.open = true
	case kind == frameData && f.left > 0:
		f.idle = 0
	case kind == framePing || kind == frameReset || kind == frameWindow: // bounded by the server of x/net
	default:
		f.idle++
	}
}

// Types of frames, and the flag of the last one of a header block.
const (
	frameData         = 0
	frameHeaders      = 1
	frameReset        = 3
	framePing         = 6
	frameWindow       = 8
	frameContinuation = 9
	flagEndHeaders    = 4
)

// took processes received bytes, and reports whether a header block is incomplete.
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
			f.begins()
		}
		if f.left == 0 && f.block && f.head[4]&flagEndHeaders != 0 {
			f.open = false
		}
	}
	return f.open
}

// read updates a connection's state after received frames.
func (k *conn) read(f *headerBlocks, p []byte) {
	open := f.took(p)
	if f.flood() {
		k.flooded.Store(true)
	}
	switch phase, _ := k.state.Look(); {
	case open && phase == h1.Idle:
		k.state.To(h1.Waiting)
	case !open && phase == h1.Waiting:
		k.state.To(h1.Idle)
	}
}
