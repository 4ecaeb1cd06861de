package frames

import (
	"time"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/proxy/schema"
)

// Handoff is how agent and proxy talk; see handoff.Protocol.
func Handoff() handoff.Protocol {
	return handoff.Protocol{Child: "proxy", Version: 1, PassesSockets: true, ReportBytes: 4 << 20,
		ReportPause: 100 * time.Millisecond}
}

// Delta is a change of one kind.
type Delta[P any] = handoff.Delta[string, P]

// Listening is what a proxy should serve.
type Listening = handoff.Listening[schema.Socket]

// Update is what the agent says. A part that is nil did not change. Backends and
// certificates that are set must be in force before the hosts are, and those that are
// deleted go after.
type Update struct {
	Settings     *schema.Settings           `json:"settings,omitempty"`
	Hosts        *Delta[schema.Host]        `json:"hosts,omitempty"`
	Backends     *Delta[schema.Backend]     `json:"backends,omitempty"`
	Certificates *Delta[schema.Certificate] `json:"certificates,omitempty"`
	Listen       *Listening                 `json:"listen,omitempty"`
}

// Report is what a proxy says of itself, whenever that changes.
type Report struct {
	// Certificates are those of no use, by key, with what is wrong.
	Certificates map[string]string `json:"certificates,omitempty"`
}
