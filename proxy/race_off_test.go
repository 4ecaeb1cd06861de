//go:build !race

package proxy

// allocationsAllowed is how many allocations an exchange may make.
const allocationsAllowed = 0
