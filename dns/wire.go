package dns

import (
	"net/netip"
	"time"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/model"
)

// protocolVersion is also that of the snapshot on the disk.
const protocolVersion = 2

// newsPause is the least time between two news.
const newsPause = time.Second

// protocol is how agent and server talk; see handoff.Protocol.
func protocol() handoff.Protocol {
	return handoff.Protocol{Child: "dns server", Version: protocolVersion, ReportBytes: 64 << 10,
		ReportPause: newsPause}
}

// news is what a server says after hello: what its upstream servers cannot do. It may not be nil.
type news struct {
	Lacks map[string][]string `json:"lacks"`
}

// update is what the agent says. Every part may be missing.
type update struct {
	Settings *Settings `json:"settings,omitempty"`
	// Whole says that Set is all that exists.
	Whole bool   `json:"whole,omitempty"`
	Set   []pair `json:"set,omitempty"`
	// Deleted keys.
	Deleted []model.Name `json:"deleted,omitempty"`
	// Callers, when not nil, are all pods of this node.
	Callers map[netip.Addr]Caller `json:"callers"`
	// Guests, when not nil, are all networks of clients beside those of the settings.
	Guests *[]netip.Prefix `json:"guests,omitempty"`
	// Sockets, when not nil, is the whole list of sockets to serve; those in Passed
	// come with this frame, in this order.
	Sockets []Socket `json:"sockets,omitempty"`
	Passed  []Socket `json:"passed,omitempty"`
	// Rest says that DNS is off: there is nothing to answer, and no socket to serve.
	Rest bool `json:"rest,omitempty"`
}

type pair struct {
	Key   model.Name `json:"key"`
	Entry Entry      `json:"entry"`
}
