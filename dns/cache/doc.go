// Package cache keeps replies of other servers as bytes, within a bound.
package cache
