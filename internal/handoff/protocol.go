// Package handoff passes listening sockets and state from the agent to a child process, over a unix socket. DNS and the
// proxy use it; each adds its own state and sockets.
//
// The child sends hello. The agent then sends the complete state, and after that changes. The sockets are descriptors
// in the same frames. The child may send reports.
//
// Invariants:
//   - Each side checks the user of the peer (SO_PEERCRED) before it reads a frame.
//   - A hello contains the version of the protocol. Another version ends the connection: agent and child
//     are containers of one pod, so the child continues with its state until its own restart.
//   - What the agent reads is bounded in bytes, descriptors and frames per second: the child reads
//     hostile bytes, and may be captured.
//   - A child without an agent continues with its state, and reconnects.
//   - A slow child delays no other child: changes wait for it, merged by key.
package handoff

import (
	"time"

	"wayleave.dev/internal/frame"
)

// Protocol is one use of the hand-off. Both sides state the same one.
type Protocol struct {
	// Child names the child in logs and errors, such as "dns server".
	Child string
	// Version is incremented when the meaning of a frame changes.
	Version int
	// PassesSockets means that the child's hello carries the descriptors of the sockets that it holds.
	PassesSockets bool
	// ReportBytes bounds a report. ReportPause is the minimum interval between two: the agent reads no faster.
	ReportBytes int
	ReportPause time.Duration
}

// Bounds that all protocols share.
const (
	// helloWithin is how long a new connection may be silent, and helloBytes bounds its hello.
	helloWithin = 10 * time.Second
	helloBytes  = 64 << 10
	// writeWithin is how long the peer may take to read a frame.
	writeWithin = 10 * time.Second
	// retryAfter is the interval of retries to open a socket.
	retryAfter = time.Second
)

// Hello is a child's first message.
type Hello[S comparable] struct {
	Version int `json:"version"`
	// Holds are the sockets that the child has from an earlier agent. If the protocol passes sockets, their descriptors
	// are in the same frame, in this order.
	Holds []S `json:"holds,omitempty"`
	// Known means that the child has state to serve from.
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
