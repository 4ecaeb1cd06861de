// Package reconcile drives a feature: it waits for changes of the model, plans
// the changed keys, and has a Target bring the changed plans into the kernel.
//
// Invariants:
//   - Only changed keys are planned and only changed plans are applied.
//   - A Target is used by one goroutine.
//   - An error never goes back to a source: it is retried with back-off, counted
//     and shown in the Health until it has gone.
//   - Nothing is removed from the kernel before all watched kinds are synced.
package reconcile
