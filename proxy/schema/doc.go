// Package schema is what the agent and the proxy tell each other: hosts with their paths, backends with their
// endpoints, certificates, settings, sockets, reports. It is JSON in the frames of internal/handoff.
//
// Invariant: agents and proxies of two versions overlap in an upgrade. A field that a proxy sends is known to the
// agents before it is sent; a change of meaning raises the version of Handoff.
package schema
