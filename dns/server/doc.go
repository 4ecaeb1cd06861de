// Package server is the DNS server, a process without capabilities. It answers queries from the records that an agent
// sent, also when the agent is gone.
//
// Invariants:
//   - A query is answered only for the clients that the agent allows.
//   - What one source can hold is bounded: pending queries, connections, bytes, time.
//   - A dead upstream server delays no answer about cluster names.
package server
