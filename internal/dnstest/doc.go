// Package dnstest contains what tests of DNS share: upstream servers that misbehave on demand, messages, and a model
// with Services of all kinds.
package dnstest
