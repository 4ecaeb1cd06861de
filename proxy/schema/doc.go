// Package schema is what the agent tells the proxy, as JSON: hosts with their paths, backends with their endpoints,
// certificates, settings, sockets. proxy/frames has the messages.
//
// Invariant: agents and proxies of two versions overlap in an upgrade. Fields keep their names, and a change of
// meaning raises the version of frames.Handoff.
package schema
