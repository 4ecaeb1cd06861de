// Package model holds the desired state of the network: what the sources (the
// Kubernetes API or YAML files) say, reduced to what a feature uses.
//
// Invariants:
//   - Objects are immutable once they are written: slices and maps in them MUST
//     NOT be changed by anybody, since every snapshot shares them.
//   - No API types and no I/O: this package knows neither Kubernetes nor kernel.
//   - Each table has one writer: the source that owns the kind.
//   - A snapshot is consistent over all tables: what one write transaction
//     changed is seen whole or not at all.
package model
