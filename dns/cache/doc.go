// Package cache keeps replies of upstream servers as bytes, within a bound.
package cache
