// Package writeback is all that Wayleave writes to the Kubernetes API: Events
// about objects that are wrong, and the objects of ours that a cluster needs.
//
// Invariants:
//   - The replica of the writer that is elected by a Lease writes cluster-wide objects and
//     all Events. A node's agent writes its node's Lease and nothing else.
//   - A write is made only when the object differs, so that a cluster at rest
//     sees no writes but the Lease's.
package writeback
