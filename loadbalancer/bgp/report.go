package bgp

import (
	"net/netip"
	"time"
)

// Report is the complete state of the process bgp.
type Report struct {
	// Running says whether the process runs; Restarts counts its restarts.
	Running  bool   `json:"running"`
	PID      int    `json:"pid"`
	Restarts uint64 `json:"restarts"`
	// Problem is why the last State is not in force; empty if it is.
	Problem string `json:"problem,omitempty"`
	// Converged says that every session that can be established has been, and has sent all its routes, or that the
	// wait for it is over.
	Converged bool            `json:"converged"`
	Sessions  []SessionReport `json:"sessions"`
	// Routes are all accepted paths of peers, sorted by prefix and session.
	Routes []Route `json:"routes"`
	// Refused counts connections of strangers to the port.
	Refused uint64 `json:"refused"`
}

// SessionReport is the state of a session.
type SessionReport struct {
	Name string `json:"name"`
	// Addr is the peer's; a session with a Range has a report for each peer.
	Addr netip.Addr `json:"addr,omitzero"`
	// State is idle, active, opensent, openconfirm or established.
	State string `json:"state"`
	// ASN is the peer's own, once it has sent it.
	ASN   uint32    `json:"asn"`
	Since time.Time `json:"since"`
	// Received, Accepted and Advertised count prefixes of both families.
	Received   uint64 `json:"received"`
	Accepted   uint64 `json:"accepted"`
	Advertised uint64 `json:"advertised"`
	// MessagesIn and MessagesOut count messages.
	MessagesIn  uint64 `json:"messagesIn"`
	MessagesOut uint64 `json:"messagesOut"`
	// GracefulRestart says that both sides support it; AddPath likewise.
	GracefulRestart bool `json:"gracefulRestart"`
	// Error is the last failure, and who saw it; ErrorAt is when.
	Error   string    `json:"error,omitempty"`
	ErrorAt time.Time `json:"errorAt,omitzero"`
}

// Established is the state of a session in which routes are exchanged.
const Established = "established"

// Route is an accepted path of a peer.
type Route struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop"`
	// Session is a name.
	Session string `json:"session"`
	// Origin is the router id of the node that announced the path first.
	Origin netip.Addr `json:"origin,omitzero"`
	// Best says whether the path is the one that BGP selects, or equal to it.
	Best bool `json:"best"`
	// Stale says that the peer is restarting, and has not confirmed the path yet.
	Stale bool `json:"stale,omitempty"`
}
