// Package server is the DNS server, a process without capabilities. It answers queries by what an agent told it, also
// when the agent has gone.
//
// Invariants:
//   - A query is answered only for the clients that the agent allows.
//   - What one source can hold is bounded: queries under way, connections, bytes, time.
//   - A dead upstream server delays no answer of the cluster.
package server
