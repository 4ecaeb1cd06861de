//go:build !race

package proxy

// allocationsAllowed is how many allocations an exchange may make.
const allocationsAllowed = 0

// tunnelBytes is what a silent tunnel may cost.
const tunnelBytes = 40 << 10
