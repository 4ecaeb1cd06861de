// Package dns is the cluster DNS, by the Kubernetes DNS specification 1.1.0.
//
// It has two sides. In the agent, Plan turns a Service into its records and Feed
// hands them on. In a process of its own, without capabilities, Server answers
// queries with what a feed gave it, also when the agent has gone.
//
// Invariants:
//   - Bytes from the network are parsed only in the process without capabilities.
//   - A query is answered only for the clients that the agent allows: never an
//     open resolver.
//   - A change of one service touches the names of that service only.
package dns
