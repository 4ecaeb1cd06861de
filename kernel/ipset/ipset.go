// Package ipset destroys named sets of the kernel's ip_set. Wayleave makes none: a kube-proxy in mode ipvs leaves them.
package ipset

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Conn destroys sets of one network namespace.
type Conn interface {
	// Destroy removes a set, which no rule may use any more; no error when there is none.
	Destroy(ctx context.Context, name string) error
}

// Kernel is the Conn of a network namespace. Its methods may be called concurrently.
type Kernel struct{ handle *netlink.Handle }

var _ Conn = (*Kernel)(nil)

// NewKernel makes a Conn for the namespace of this process, or with a descriptor other
// than 0 for that one.
func NewKernel(nsfd int) (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if nsfd != 0 {
		h, err = netlink.NewHandleAt(netns.NsHandle(nsfd), unix.NETLINK_NETFILTER)
	}
	if err != nil {
		return nil, fmt.Errorf("ipset: %w", err)
	}
	return &Kernel{h}, nil
}

// Destroy implements Conn. Where the kernel has not loaded ip_set there are none: looking
// must not load it.
func (k *Kernel) Destroy(_ context.Context, name string) error {
	if _, err := os.Stat("/sys/module/ip_set"); err != nil {
		return nil
	}
	if err := k.handle.IpsetDestroy(name); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("ipset: destroy %s: %w", name, err)
	}
	return nil
}
