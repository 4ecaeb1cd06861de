// Package speaker runs the answering of addresses (l2) and the heartbeats (peers) in a process
// without capabilities, and looks after that process.
//
// The agent's Supervisor starts it, opens its packet sockets, and tells it the whole desired state;
// the process tells the whole of what it does and sees back. It decides alone who answers, so it
// goes on when the agent is busy, and it ends with the agent.
package speaker

import (
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/peers"
)

// DefaultSettle is for how long a node that has just started leaves addresses to others.
const DefaultSettle = 5 * time.Second

// State is all that there is to do.
type State struct {
	// Node is the name of this node. It is one of Peers.
	Node string `json:"node"`
	// Peers are all nodes. The first address of this node is where heartbeats are heard.
	Peers []peers.Peer `json:"peers"`
	// Keys encrypt heartbeats, the newest first. Without any nothing is answered.
	Keys [][]byte `json:"keys"`
	// Port is that of heartbeats, UDP and TCP.
	Port uint16 `json:"port"`
	// Settle is for how long after its start the process leaves addresses to others that are willing.
	// It is 0 when it follows another one at once.
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

// listen is where heartbeats are heard.
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

// Report is all that the process does and sees.
type Report struct {
	// Running says whether there is a process, Restarts how often one had to be started again.
	Running  bool   `json:"running"`
	PID      int    `json:"pid"`
	Restarts uint64 `json:"restarts"`
	// Heartbeats says what keeps them from being sent; it is empty when nothing does.
	Heartbeats string `json:"heartbeats,omitempty"`
	// Ready says whether the other nodes have been looked for.
	Ready    bool     `json:"ready"`
	Willing  bool     `json:"willing"`
	Draining bool     `json:"draining"`
	Members  []Member `json:"members"`
	// VIPs are the addresses that this node answers for.
	VIPs     []l2.Owned   `json:"vips"`
	Disputes []l2.Dispute `json:"disputes"`
	Foreign  []l2.Foreign `json:"foreign"`
	// Problems are what failed and is tried again.
	Problems []string `json:"problems"`
	Counters Counters `json:"counters"`
}

// Counters count since the agent's start.
type Counters struct {
	Takeovers uint64 `json:"takeovers"`
	Disputes  uint64 `json:"disputes"`
	// Answers are what was asked and answered; Ignored the frames that made no sense.
	Answers uint64 `json:"answers"`
	Ignored uint64 `json:"ignored"`
	// Refused are connections and messages at the port of heartbeats that were turned away.
	Refused uint64 `json:"refused"`
}

func (c Counters) plus(d Counters) Counters {
	return Counters{c.Takeovers + d.Takeovers, c.Disputes + d.Disputes, c.Answers + d.Answers, c.Ignored + d.Ignored,
		c.Refused + d.Refused}
}

// order is a frame of the agent. What is absent stays as it is.
type order struct {
	State *State     `json:"state,omitempty"`
	Links *[]l2.Link `json:"links,omitempty"`
	// Passed say what the descriptors of the frame are.
	Passed []passed `json:"passed,omitempty"`
	Drain  bool     `json:"drain,omitempty"`
	// Handover says that another process follows at once: the others are not told of the end.
	Handover bool   `json:"handover,omitempty"`
	Ping     uint64 `json:"ping,omitempty"`
}

type passed struct {
	Kind  l2.Kind `json:"kind"`
	Index int     `json:"index"`
}

// news is a frame of the process.
type news struct {
	Pong     uint64    `json:"pong,omitempty"`
	Counters *Counters `json:"counters,omitempty"`
	Report   *Report   `json:"report,omitempty"`
}
