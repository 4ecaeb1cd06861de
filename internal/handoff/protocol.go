// Package handoff is how the agent gives a child process its listening sockets and its state, over
// a unix socket. DNS and the proxy use it; each adds its own state and its own sockets.
//
// The child says hello. The agent then sends the whole state, and after that what changes. The
// sockets are descriptors in the same frames. The child may send reports.
//
// Invariants:
//   - Each side checks the user at the other end (SO_PEERCRED) before it reads a frame.
//   - A hello has the version of the protocol. Another version ends the connection: agent and child
//     are containers of one pod, so the child runs on with what it knows until its own restart.
//   - What the agent reads is bounded in bytes, descriptors and frames per second: the child reads
//     hostile bytes, and may be captured.
//   - A child without an agent goes on with what it has, and connects again.
//   - A slow child delays no other child: changes wait for it, merged by key.
package handoff

import (
	"time"

	"wayleave.dev/internal/frame"
)

// Protocol is one use of the hand-off. Both sides state the same one.
type Protocol struct {
	// Child names the child in logs and errors, as "dns server".
	Child string
	// Version rises when the meaning of a frame does.
	Version int
	// PassesSockets says that the child's hello carries the descriptors of the sockets that it holds.
	PassesSockets bool
	// ReportBytes bounds a report. ReportPause is the least time between two: the agent reads no
	// faster.
	ReportBytes int
	ReportPause time.Duration
}

// Bounds that all protocols share.
const (
	// helloWithin is how long a child that connected may be silent, and helloBytes bounds its hello.
	helloWithin = 10 * time.Second
	helloBytes  = 64 << 10
	// writeWithin is how long the other side may take for a frame.
	writeWithin = 10 * time.Second
	// retryAfter is when a socket that could not be opened is tried again.
	retryAfter = time.Second
)

// Hello is what a child says first.
type Hello[S comparable] struct {
	Version int `json:"version"`
	// Holds are the sockets that the child has from an earlier agent. Where the protocol passes
	// sockets, their descriptors are in the same frame, in this order.
	Holds []S `json:"holds,omitempty"`
	// Known says that the child has state to answer by.
	Known bool `json:"known,omitempty"`
}

func (p Protocol) helloLimits() frame.Limits {
	l := frame.Limits{Bytes: helloBytes}
	if p.PassesSockets {
		l.Files = frame.MaxPassed
	}
	return l
}

func (p Protocol) reportLimits() frame.Limits { return frame.Limits{Bytes: p.ReportBytes} }
