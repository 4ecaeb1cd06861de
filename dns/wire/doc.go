// Package wire reads queries and writes records of the DNS, for the hot path and for the slow one.
package wire
