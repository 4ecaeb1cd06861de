// Package supervisor keeps a child process (internal/child) running, and exchanges frames with it: the agent sends
// orders, the process sends news.
//
// The agent pings the process. Goroutines of their own read and answer pings, so that a long step of the process's work
// does not delay an answer. The answer says for how long that step has lasted. The agent therefore ends a process that
// is stopped or has no processor after Options.HungAfter, one that is stuck after Options.StuckAfter, and none that
// only works.
package supervisor

import "time"

// toChild is a frame of the agent.
type toChild[O any] struct {
	Ping  uint64 `json:"ping,omitempty"`
	Order *O     `json:"order,omitempty"`
}

// toAgent is a frame of the process.
type toAgent[N any] struct {
	Pong uint64 `json:"pong,omitempty"`
	// Behind is for how long the process's loop has not taken a probe.
	Behind time.Duration `json:"behind,omitempty"`
	News   *N            `json:"news,omitempty"`
}
