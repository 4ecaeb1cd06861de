// Package frames defines the messages between the agent and the proxy, in the hand-off of internal/handoff.
//
// Invariant: agents and proxies of two versions overlap during an upgrade. Agents must know a field before proxies send
// it; a change of meaning increments the version of Handoff.
package frames
