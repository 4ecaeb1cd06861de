// Package frames has the messages between the agent and the proxy, in the hand-off of internal/handoff.
//
// Invariant: agents and proxies of two versions overlap in an upgrade. A field that a proxy sends is known to the
// agents before it is sent; a change of meaning raises the version of Handoff.
package frames
