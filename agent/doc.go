// Package agent is the life of a node's agent and of the cluster-wide writer: it reads the settings and the API, waits
// for the lock of the node, runs the parts of each feature, and serves probes and status. It also takes everything off
// a node again.
//
// What a feature does is behind the interface Feature and small optional interfaces beside it. This package knows no
// feature: package agent/features lists them. A feature is added by a folder with its implementation and one line of
// that list. Package agent/internal/example is one to begin from.
package agent
