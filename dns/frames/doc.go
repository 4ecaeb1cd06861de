// Package frames defines the messages between the agent and the DNS server, in the hand-off of internal/handoff.
//
// Invariant: agents and servers of two versions overlap during an upgrade. Agents must know a field before servers send
// it; a change of meaning increments Version.
package frames
