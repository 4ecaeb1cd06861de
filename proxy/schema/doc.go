// Package schema defines what the agent sends to the proxy, as JSON: hosts with their paths, backends with their
// endpoints, certificates, settings, sockets. proxy/frames has the messages.
//
// Invariant: agents and proxies of two versions overlap during an upgrade. Fields keep their names, and a change of
// meaning increments the version of frames.Handoff.
package schema
