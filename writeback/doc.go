// Package writeback is all that Wayleave writes to the Kubernetes API: Events
// about objects that are wrong, and the objects of ours that a cluster needs.
//
// Invariants:
//   - One agent, elected by a Lease, writes cluster-wide objects and the Events
//     about them; an agent writes by itself only about its own node.
//   - A write is made only when the object differs, so that a cluster at rest
//     sees no writes but the Lease's.
package writeback
