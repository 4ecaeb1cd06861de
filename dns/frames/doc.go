// Package frames has the messages between the agent and the DNS server, in the hand-off of internal/handoff.
//
// Invariant: agents and servers of two versions overlap in an upgrade. A field that a server sends is known to the
// agents before it is sent; a change of meaning raises Version.
package frames
