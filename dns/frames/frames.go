package frames

import (
	"net/netip"
	"time"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/model"
)

// Version is also that of the snapshot on disk.
const Version = 2

// NewsPause is the minimum interval between two news.
const NewsPause = time.Second

// Handoff is the protocol of agent and server; see handoff.Protocol.
func Handoff() handoff.Protocol {
	return handoff.Protocol{Child: "dns server", Version: Version, ReportBytes: 64 << 10,
		ReportPause: NewsPause}
}

// News is what a server sends after hello: the limitations of its upstream servers. It must not be nil.
type News struct {
	Lacks map[string][]string `json:"lacks"`
}

// Update is the agent's message. Every part may be absent.
type Update struct {
	Settings *schema.Settings `json:"settings,omitempty"`
	// Whole means that Set is the complete state.
	Whole bool   `json:"whole,omitempty"`
	Set   []Pair `json:"set,omitempty"`
	// Deleted are deleted keys.
	Deleted []model.Name `json:"deleted,omitempty"`
	// Callers, if not nil, are all pods of this node.
	Callers map[netip.Addr]schema.Caller `json:"callers"`
	// Guests, if not nil, are all networks of clients in addition to those of the settings.
	Guests *[]netip.Prefix `json:"guests,omitempty"`
	// Sockets, if not nil, is the complete list of sockets to serve; those in Passed are passed with this frame, in
	// this order.
	Sockets []schema.Socket `json:"sockets,omitempty"`
	Passed  []schema.Socket `json:"passed,omitempty"`
	// Rest means that DNS is disabled: there is nothing to answer, and no socket to serve.
	Rest bool `json:"rest,omitempty"`
}

// Pair contains the records of one key.
type Pair struct {
	Key     model.Name     `json:"key"`
	Records schema.Records `json:"entry"`
}
