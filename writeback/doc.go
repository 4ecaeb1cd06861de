// Package writeback writes to the Kubernetes API: Events about invalid objects, statuses, and Wayleave's own objects.
//
// Invariants:
//   - The replica of the writer that is elected by a Lease writes cluster-wide objects and all Events. A node's agent
//     writes its node's Lease and nothing else.
//   - An object is written only if it differs, so an idle cluster sees no writes except those of the election.
package writeback
