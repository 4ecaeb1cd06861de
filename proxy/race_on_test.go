//go:build race

package proxy

// allocationsAllowed is how many allocations an exchange may make: under the race detector sync.Pool
// throws things away at random.
const allocationsAllowed = 8

// tunnelBytes is what a silent tunnel may cost: stacks are larger under the race detector.
const tunnelBytes = 80 << 10
