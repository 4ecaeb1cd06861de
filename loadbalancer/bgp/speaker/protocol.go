// Package speaker runs BGP sessions (gobgp) in a process that has no capability but the one to bind its port, and
// supervises that process.
//
// The agent's Supervisor starts the process and sends it the complete desired state. The process reports its complete
// state. It ends with the agent, without a word to its peers: they keep the routes of a process that restarts
// gracefully, and drop them when none follows within the restart time.
package speaker

import "wayleave.dev/loadbalancer/bgp"

// order is sent by the agent.
type order struct {
	State *bgp.State `json:"state,omitempty"`
}

// news are sent by the process.
type news struct {
	Report *bgp.Report `json:"report,omitempty"`
}
