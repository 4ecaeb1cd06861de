// Package dns is the agent's side of the cluster DNS, by the Kubernetes DNS specification 1.1.0: it plans the records
// of Services (Plan) and the place where DNS listens (Placement), and sends both to the server (Feed).
//
// The server is a separate process without capabilities: package dns/server, with dns/wire, dns/zone, dns/cache and
// dns/forward. It also answers when the agent is gone. Both sides share dns/schema.
//
// Invariants:
//   - Bytes from the network are parsed only in the process without capabilities: this package imports none of its
//     parsers.
//   - A query is answered only for the clients that the agent allows: never an open resolver.
//   - A change of one Service affects only the names of that Service.
package dns
