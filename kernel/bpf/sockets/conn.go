package sockets

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"wayleave.dev/model"
)

// Key identifies a frontend.
type Key struct {
	At       netip.AddrPort
	Protocol model.Protocol
}

// Compare orders keys.
func (k Key) Compare(o Key) int {
	if c := k.At.Compare(o.At); c != 0 {
		return c
	}
	return int(k.Protocol) - int(o.Protocol)
}

// Frontend is a destination that the programs translate. Its backends are of the same family, sorted, and at least one.
type Frontend struct {
	Key
	Backends []netip.AddrPort
	// PodsOnly excludes processes of the node.
	PodsOnly bool
}

// Equal compares two frontends.
func (f Frontend) Equal(o Frontend) bool {
	return f.Key == o.Key && f.PodsOnly == o.PodsOnly && slices.Equal(f.Backends, o.Backends)
}

// Node is what the programs know of the node.
type Node struct {
	// Pods are the addresses of the node's pods. A namespace that uses one of them is a pod's.
	Pods []netip.Prefix
	// Host means that sockets of the node's own network namespace are translated, too.
	Host bool
}

// ErrFull means that a map has no room for a frontend.
var ErrFull = errors.New("the map is full")

// Conn is the kernel. Its methods must not be called concurrently, except Watch.
type Conn interface {
	// Attach loads and attaches what is not there, and adopts what is.
	Attach(context.Context) error
	// Frontends reads the maps.
	Frontends(context.Context) ([]Frontend, error)
	// Set adds or replaces frontends, each atomically. It returns the errors of those that it could not set: such a
	// frontend is then as before.
	Set(context.Context, []Frontend) map[Key]error
	// Delete removes frontends; one that does not exist is no error.
	Delete(context.Context, []Key) error
	// SetNode replaces the facts of the node.
	SetNode(context.Context, Node) error
	// Watch reports that programs were detached, or pins deleted, until ctx ends.
	Watch(context.Context) (<-chan struct{}, error)
	// Remove removes everything. Translated connections continue.
	Remove(context.Context) error
	// Remains lists what is in the kernel.
	Remains(context.Context) ([]string, error)
}
