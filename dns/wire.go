package dns

import (
	"net/netip"

	"wayleave.dev/model"
)

// The agent and the server talk over a unix socket, in frames that carry the
// descriptors of sockets.
//
// The server says hello, then the agent sends everything, then what changes.
// protocolVersion rises when a frame's meaning does; the two sides are containers
// of one pod, so a difference is an error that a restart mends.
const protocolVersion = 2

// hello is what the server says first.
type hello struct {
	Version int `json:"version"`
	// Holds are the sockets that it has from an earlier agent.
	Holds []Socket `json:"holds"`
	// Known says that it has names to answer by.
	Known bool `json:"known,omitempty"`
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
