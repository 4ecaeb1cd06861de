// Package speaker runs the responder (l2) and the heartbeats (peers) in a process without capabilities, and
// supervises that process.
//
// The agent's Supervisor starts the process, opens its packet sockets, and sends it the complete desired state. The
// process reports its complete state. It decides alone which addresses it answers for, so it continues while the
// agent is busy, and it ends with the agent.
package speaker

import (
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/peers"
)

// DefaultSettle is how long a node that has just started leaves addresses to others.
const DefaultSettle = 5 * time.Second

// State is the complete desired state.
type State struct {
	// Node is the name of this node. It is one of Peers.
	Node string `json:"node"`
	// Peers are all nodes. Heartbeats are received at the first address of this node.
	Peers []peers.Peer `json:"peers"`
	// Keys encrypt heartbeats, the newest first. Without keys nothing is answered.
	Keys [][]byte `json:"keys"`
	// Port is the port of heartbeats, UDP and TCP.
	Port uint16 `json:"port"`
	// Settle is how long after its start the process leaves addresses to willing nodes. It is 0 if the process
	// replaces another one at once.
	Settle time.Duration `json:"settle"`
	VIPs   []l2.VIP      `json:"vips"`
}

// own are the addresses of this node.
func (s *State) own() []netip.Addr {
	i := slices.IndexFunc(s.Peers, func(p peers.Peer) bool { return p.Name == s.Node })
	if i < 0 {
		return nil
	}
	return s.Peers[i].Addrs
}

// listen is the address for heartbeats.
func (s *State) listen() (netip.AddrPort, bool) {
	own := s.own()
	if len(own) == 0 {
		return netip.AddrPort{}, false
	}
	port := s.Port
	if port == 0 {
		port = peers.DefaultPort
	}
	return netip.AddrPortFrom(own[0], port), true
}

// Member is another node.
type Member struct {
	Name    string `json:"name"`
	Live    bool   `json:"live"`
	Willing bool   `json:"willing"`
}

// Report is the complete state of the process.
type Report struct {
	// Running says whether the process runs; Restarts counts its restarts.
	Running  bool   `json:"running"`
	PID      int    `json:"pid"`
	Restarts uint64 `json:"restarts"`
	// Heartbeats is the error that prevents heartbeats; empty if there is none.
	Heartbeats string `json:"heartbeats,omitempty"`
	// Ready says whether the search for other nodes is complete.
	Ready    bool     `json:"ready"`
	Willing  bool     `json:"willing"`
	Draining bool     `json:"draining"`
	Members  []Member `json:"members"`
	// VIPs are the addresses that this node answers for.
	VIPs     []l2.Owned   `json:"vips"`
	Disputes []l2.Dispute `json:"disputes"`
	Foreign  []l2.Foreign `json:"foreign"`
	// Problems are failures that are retried.
	Problems []string `json:"problems"`
	Counters Counters `json:"counters"`
}

// Counters count since the agent's start.
type Counters struct {
	Takeovers uint64 `json:"takeovers"`
	Disputes  uint64 `json:"disputes"`
	// Answers counts answered requests, Ignored invalid frames.
	Answers uint64 `json:"answers"`
	Ignored uint64 `json:"ignored"`
	// Refused counts connections and messages at the heartbeat port that were refused.
	Refused uint64 `json:"refused"`
}

func (c Counters) plus(d Counters) Counters {
	return Counters{c.Takeovers + d.Takeovers, c.Disputes + d.Disputes, c.Answers + d.Answers, c.Ignored + d.Ignored,
		c.Refused + d.Refused}
}

// order is sent by the agent. Absent fields stay as they are.
type order struct {
	State *State     `json:"state,omitempty"`
	Links *[]l2.Link `json:"links,omitempty"`
	// Passed describes the descriptors of the order.
	Passed []passed `json:"passed,omitempty"`
	Drain  bool     `json:"drain,omitempty"`
	// Handover says that another process follows at once: peers are not told of the end.
	Handover bool `json:"handover,omitempty"`
}

type passed struct {
	Kind  l2.Kind `json:"kind"`
	Index int     `json:"index"`
}

// news are sent by the process.
type news struct {
	Counters *Counters `json:"counters,omitempty"`
	Report   *Report   `json:"report,omitempty"`
}
