// Package wireguard makes WireGuard devices: those of the kernel, and where it has none, devices of a process of this
// program (package podnetwork/wireguard/process) behind a tun device.
//
// Invariants:
//   - A device outlives the agent. Its private key is in the device alone, and never on disk.
//   - A device is changed into what is wanted, peer by peer: sessions of peers that stay are kept.
package wireguard

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/curve25519"
)

// Prefix is what the names of our devices begin with.
const Prefix = "wayleave-wg"

// KeepAlive is how often an idle session is used: so a handshake that fails is noticed, and a session is there before
// it is needed.
const KeepAlive = 25 * time.Second

// Key is a key of Curve25519.
type Key [32]byte

// String is the key in base64, as `wg` shows it.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero says whether there is no key.
func (k Key) IsZero() bool { return k == Key{} }

// ParseKey reads a public key in base64. It refuses keys of which the shared secret would be known to all.
func ParseKey(s string) (Key, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != 32 || len(s) != base64.StdEncoding.EncodedLen(32) {
		return Key{}, fmt.Errorf("key: found %d characters; allowed: 32 bytes in base64", len(s))
	}
	if _, err := curve25519.X25519(Key{1}.bytes(), raw); err != nil {
		return Key{}, fmt.Errorf("key: %w", err)
	}
	return Key(raw), nil
}

func (k Key) bytes() []byte { return k[:] }

// NewKey makes a private key.
func NewKey() (k Key, err error) {
	if _, err := rand.Read(k[:]); err != nil {
		return Key{}, fmt.Errorf("make a key: %w", err)
	}
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k, nil
}

// Public is the public key of a private one.
func (k Key) Public() Key {
	if k.IsZero() {
		return Key{}
	}
	out, err := curve25519.X25519(k[:], curve25519.Basepoint)
	if err != nil {
		return Key{} // not with the base point
	}
	return Key(out)
}

// Config is what a device is to be.
type Config struct {
	Name    string
	Private Key
	// Port is the UDP port, of all addresses and both families.
	Port uint16
	MTU  int
	// Addrs are the device's own, the source of what is masqueraded into it.
	Addrs []netip.Addr
	Peers []Peer
}

// Peer is another node.
type Peer struct {
	Public   Key
	Endpoint netip.AddrPort
	// Allowed are the inner addresses that the peer can send from, and that are sent to it.
	Allowed []netip.Prefix
}

// Equal compares two peers.
func (p Peer) Equal(o Peer) bool {
	return p.Public == o.Public && p.Endpoint == o.Endpoint && slices.Equal(p.Allowed, o.Allowed)
}

// State is what a device is.
type State struct {
	// Index is the number of the link.
	Index   int
	Private Key
	Port    uint16
	Peers   []PeerState
}

// PeerState is what a device knows of a peer.
type PeerState struct {
	Peer
	// Handshake is the last one, zero for none.
	Handshake time.Time
	// Received and Sent are bytes of encrypted packets.
	Received, Sent uint64
}

// Net is the WireGuard of one network namespace. Safe for concurrent use.
type Net interface {
	// Kind is "kernel" or "user space".
	Kind() string
	// Get reads a device, nil where there is none.
	Get(ctx context.Context, name string) (*State, error)
	// Set makes a device, or changes one into this.
	Set(ctx context.Context, c Config) error
	// Remove removes a device; none is no error.
	Remove(ctx context.Context, name string) error
	// Changed tells that a device needs to be set again.
	Changed() <-chan struct{}
}

// change is what a device lacks of a configuration.
type change struct {
	private *Key
	port    *uint16
	set     []peerChange
	remove  []Key
}

// peerChange is a peer to be set. A peer that is there keeps the endpoint from which it was heard last, unless the
// wanted endpoint is another one than before or the peer is not heard any more.
type peerChange struct {
	Peer
	known, endpoint, allowed bool
}

// silentAfter is when a session has ended for want of a handshake (REJECT_AFTER_TIME).
const silentAfter = 180 * time.Second

// differ returns what a device lacks, nil where it lacks nothing. before is what was set last.
func differ(have State, want Config, before Config, now time.Time) *change {
	var c change
	if have.Private != want.Private {
		c.private = &want.Private
	}
	if have.Port != want.Port {
		c.port = &want.Port
	}
	for _, p := range want.Peers {
		i := slices.IndexFunc(have.Peers, func(s PeerState) bool { return s.Public == p.Public })
		if i < 0 {
			c.set = append(c.set, peerChange{Peer: p, endpoint: true, allowed: true})
			continue
		}
		is := have.Peers[i]
		old := slices.IndexFunc(before.Peers, func(b Peer) bool { return b.Public == p.Public })
		moved := old >= 0 && before.Peers[old].Endpoint != p.Endpoint
		lost := now.Sub(is.Handshake) > silentAfter
		d := peerChange{Peer: p, known: true, endpoint: is.Endpoint != p.Endpoint && (moved || lost),
			allowed: !sameNetworks(is.Allowed, p.Allowed)}
		if d.endpoint || d.allowed {
			c.set = append(c.set, d)
		}
	}
	for _, is := range have.Peers {
		if !slices.ContainsFunc(want.Peers, func(p Peer) bool { return p.Public == is.Public }) {
			c.remove = append(c.remove, is.Public)
		}
	}
	if c.private == nil && c.port == nil && len(c.set)+len(c.remove) == 0 {
		return nil
	}
	return &c
}

func sameNetworks(a, b []netip.Prefix) bool {
	order := func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	}
	return slices.Equal(slices.SortedFunc(slices.Values(a), order), slices.SortedFunc(slices.Values(b), order))
}
