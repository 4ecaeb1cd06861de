package podnetwork

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/ipam"
)

// proxyRetry is how long to wait until an address that could not be set is tried again.
const proxyRetry = 5 * time.Second

// proxyLinks are the loopback's addresses of the ingress proxy. They are remembered apart
// from those of DNS.
func proxyLinks(c Config) (*link.Kernel, error) {
	k, err := link.NewKernel(c.NSFD, proxyFile(c))
	if err != nil {
		return nil, err
	}
	k.Tell = c.Tell
	return k, nil
}

func proxyFile(c Config) string { return filepath.Join(c.StateDir, "proxy-addresses") }

// proxyAddrs are the addresses of the node's proxy that no pod has.
func (n *Network) proxyAddrs() (out []netip.Addr) {
	node, ok := n.Store.Snapshot().Node(n.Node)
	if !ok || !n.ProxyAddress {
		return nil
	}
	leases := n.leases.List()
	for _, a := range node.ProxyAddrs() {
		if !slices.ContainsFunc(leases, func(l ipam.Lease) bool { return slices.Contains(l.IPs, a) }) {
			out = append(out, a)
		}
	}
	return out
}

// proxyAddress keeps the addresses of the ingress proxy on the loopback, with scope host,
// so that the kernel takes them as a source only where it is told to. Without a proxy
// they are taken off.
func (n *Network) proxyAddress(ctx context.Context) error {
	links, err := proxyLinks(n.Config)
	if err != nil {
		return err
	}
	changed, err := links.Watch(ctx)
	if err != nil {
		return err
	}
	w, err := n.Store.Watch(model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		_, _, ready := w.Poll()
		var retry <-chan time.Time
		if err := n.setProxy(ctx, links); err != nil {
			retry = time.After(proxyRetry)
		}
		again, cancel := context.WithCancel(ctx)
		select {
		case <-ready.C(again):
		case <-n.released:
		case <-changed:
		case <-retry:
		case <-ctx.Done():
		}
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (n *Network) setProxy(ctx context.Context, links *link.Kernel) error {
	want := n.proxyAddrs()
	if have, err := links.Local(ctx); err == nil && slices.Equal(have, want) {
		if told := n.proxy.Load(); told != nil && slices.Equal(*told, want) {
			return nil // what changed was another address
		}
	}
	var problems []model.Problem
	err := links.SetLocal(ctx, want)
	if err != nil {
		problems = []model.Problem{{Kind: "Node", Object: model.Name{Name: n.Node}, Field: "spec.podCIDRs",
			Reason: fmt.Sprintf("the address of the ingress proxy: %v", err)}}
		want = nil
	}
	n.report("podnetwork", "proxy address", problems)
	if old := n.proxy.Swap(&want); n.Proxy != nil && (old == nil || !slices.Equal(*old, want)) {
		n.Proxy(slices.Clone(want))
	}
	return err
}
