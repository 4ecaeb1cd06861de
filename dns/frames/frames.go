package frames

import (
	"net/netip"
	"time"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/model"
)

// Version is also that of the snapshot on the disk.
const Version = 2

// NewsPause is the least time between two news.
const NewsPause = time.Second

// Handoff is how agent and server talk; see handoff.Protocol.
func Handoff() handoff.Protocol {
	return handoff.Protocol{Child: "dns server", Version: Version, ReportBytes: 64 << 10,
		ReportPause: NewsPause}
}

// News is what a server says after hello: what its upstream servers cannot do. It may not be nil.
type News struct {
	Lacks map[string][]string `json:"lacks"`
}

// Update is what the agent says. Every part may be missing.
type Update struct {
	Settings *schema.Settings `json:"settings,omitempty"`
	// Whole says that Set is all that exists.
	Whole bool   `json:"whole,omitempty"`
	Set   []Pair `json:"set,omitempty"`
	// Deleted keys.
	Deleted []model.Name `json:"deleted,omitempty"`
	// Callers, when not nil, are all pods of this node.
	Callers map[netip.Addr]schema.Caller `json:"callers"`
	// Guests, when not nil, are all networks of clients in addition to those of the settings.
	Guests *[]netip.Prefix `json:"guests,omitempty"`
	// Sockets, when not nil, is the whole list of sockets to serve; those in Passed
	// come with this frame, in this order.
	Sockets []schema.Socket `json:"sockets,omitempty"`
	Passed  []schema.Socket `json:"passed,omitempty"`
	// Rest says that DNS is off: there is nothing to answer, and no socket to serve.
	Rest bool `json:"rest,omitempty"`
}

// Pair is the records of one key.
type Pair struct {
	Key     model.Name     `json:"key"`
	Records schema.Records `json:"entry"`
}
