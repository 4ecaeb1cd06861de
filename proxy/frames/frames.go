package frames

import (
	"time"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/proxy/schema"
)

// Handoff is the protocol of agent and proxy; see handoff.Protocol.
func Handoff() handoff.Protocol {
	return handoff.Protocol{Child: "proxy", Version: 1, PassesSockets: true, ReportBytes: 4 << 20,
		ReportPause: 100 * time.Millisecond}
}

// Delta is a change of one kind.
type Delta[P any] = handoff.Delta[string, P]

// Listening lists what a proxy should serve.
type Listening = handoff.Listening[schema.Socket]

// Update is the agent's message. A nil part did not change. Backends and certificates that are set must be applied
// before the hosts, and deleted ones removed after them.
type Update struct {
	Settings     *schema.Settings           `json:"settings,omitempty"`
	Hosts        *Delta[schema.Host]        `json:"hosts,omitempty"`
	Backends     *Delta[schema.Backend]     `json:"backends,omitempty"`
	Certificates *Delta[schema.Certificate] `json:"certificates,omitempty"`
	Listen       *Listening                 `json:"listen,omitempty"`
}

// Report is what a proxy reports about itself, after each change.
type Report struct {
	// Certificates are the invalid ones, by key, with the reason.
	Certificates map[string]string `json:"certificates,omitempty"`
}
