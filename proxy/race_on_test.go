//go:build race

package proxy

// allowed is how many allocations an exchange may make: under the race detector sync.Pool
// throws things away at random.
const allowed = 8
