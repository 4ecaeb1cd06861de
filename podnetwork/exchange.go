package podnetwork

import (
	"time"

	"wayleave.dev/kernel/wireguard"
	plan "wayleave.dev/podnetwork/wireguard"
)

// Encryption is how packets between pods of different nodes are encrypted. The zero value encrypts nothing.
type Encryption struct {
	// Preferred and Strict are as in routes.Encryption; at most one is set. Nodes also encrypts between nodes and pods.
	Preferred, Strict, Nodes bool
	// Port is the UDP port of the first device, the next one that of the second.
	Port uint16
	// Period is that of key rotation, see package wireguard.
	Period time.Duration
	// Devices makes the devices.
	Devices wireguard.Net
	// Keys publishes this node's keys, and tells those of others.
	Keys Keys
	// Linger is how long devices stay after the node's keys were withdrawn.
	Linger time.Duration
}

// On says whether anything may be encrypted.
func (e Encryption) On() bool { return e.Preferred || e.Strict }

// Keys is where nodes publish their public keys. Safe for concurrent use.
type Keys interface {
	// Publish tells all nodes the keys of this one; the zero value withdraws them.
	Publish(plan.Published)
	// Nodes are those of all nodes that have published keys, as they are published: this node's as well. ok is false
	// before they are known. err says why this node's are not published.
	Nodes() (keys map[string]plan.Published, ok bool, err error)
	// Changed tells that Nodes has changed.
	Changed() <-chan struct{}
}
