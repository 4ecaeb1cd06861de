// Package wire parses queries and writes records of the DNS, for the hot path and the slow path.
package wire
