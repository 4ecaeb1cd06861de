// Package mtu finds out how large packets may be between nodes, and whether the
// tunnel between them spoils checksums: what makes small requests work and large
// answers hang.
//
// It asks the other node's kernel by ICMP echo and closed UDP ports, so nothing has
// to listen there; a firewall that answers neither means "not known", never "bad".
package mtu

import (
	"context"
	"errors"
	"net/netip"
)

// Pinger sends one echo request of a size, IP header included, which may not be
// fragmented, and says whether it came back. An error is a fault of this node.
type Pinger interface {
	Ping(ctx context.Context, from, to netip.Addr, size int) (answered bool, err error)
}

// Smallest sizes that every path carries (RFC 791, RFC 8200).
const (
	least4 = 576
	least6 = 1280
	small  = 100
)

// tries is how often a packet may be lost before its size is to blame.
const tries = 3

// Path is the largest size up to most that arrives. known is false when even small
// packets are not answered.
func Path(ctx context.Context, p Pinger, from, to netip.Addr, most int) (size int, known bool, err error) {
	if ok, err := answered(ctx, p, from, to, small); err != nil || !ok {
		return 0, false, err
	}
	ok, err := answered(ctx, p, from, to, most)
	if err != nil {
		return 0, false, err
	}
	if ok {
		return most, true, nil
	}
	low, high := least4, most // low arrives, high does not
	if to.Is6() {
		low = least6
	}
	for high-low > 1 {
		mid := (low + high) / 2
		ok, err := answered(ctx, p, from, to, mid)
		if err != nil {
			return 0, false, err
		}
		if ok {
			low = mid
		} else {
			high = mid
		}
	}
	return low, true, nil
}

func answered(ctx context.Context, p Pinger, from, to netip.Addr, size int) (bool, error) {
	for range tries {
		ok, err := p.Ping(ctx, from, to, size)
		if errors.Is(err, errTooBig) {
			return false, nil
		}
		if ok || err != nil {
			return ok, err
		}
	}
	return false, ctx.Err()
}
