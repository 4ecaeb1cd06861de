package veth

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Rates are limits in bits per second, and bursts in bits; zero means no limit.
type Rates struct {
	// Ingress is what the pod gets, Egress what it sends.
	Ingress, IngressBurst uint64
	Egress, EgressBurst   uint64
}

// Limits of a rate: a byte per second is the kernel's unit, and so is a 32-bit
// burst.
const (
	minRate  = 1000
	maxBurst = 1 << 31
)

// Check names the value that cannot be.
func (r Rates) Check() error {
	for _, x := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", r.Ingress, r.IngressBurst}, {"egress", r.Egress, r.EgressBurst}} {
		switch {
		case x.rate == 0 && x.burst == 0:
		case x.rate < minRate:
			return fmt.Errorf("%sRate: %d is too little: at least %d bits per second are allowed", x.name,
				x.rate, minRate)
		case x.burst > 8*maxBurst:
			return fmt.Errorf("%sBurst: %d is too much: at most %d bits are allowed", x.name, x.burst,
				8*uint64(maxBurst))
		}
	}
	return nil
}

// limit puts a token bucket on each end: the node's limits what the pod gets, the
// pod's what it sends. A pod that may change its own links (NET_ADMIN) can take its
// own end's away.
func (h *Host) limit(pod *netlink.Handle, l Link) error {
	for _, x := range []struct {
		handle      *netlink.Handle
		link        string
		rate, burst uint64
	}{{h.handle, l.HostName, l.Rates.Ingress, l.Rates.IngressBurst}, {pod, l.Name, l.Rates.Egress,
		l.Rates.EgressBurst}} {
		if x.rate == 0 {
			continue
		}
		link, err := x.handle.LinkByName(x.link)
		if err == nil {
			err = x.handle.QdiscReplace(bucket(link, x.rate, x.burst, l.MTU))
		}
		if err != nil {
			return fmt.Errorf("limit %s to %d bits per second: %w", x.link, x.rate, err)
		}
	}
	return nil
}

// bucket holds at least a burst of 25 ms or of some full packets (segmentation
// offload hands over 64 KiB at once), and lets packets wait for 25 ms.
func bucket(link netlink.Link, rate, burst uint64, mtu int) *netlink.Tbf {
	bytes, least := rate/8, uint64(max(65536, 2*mtu))
	if burst /= 8; burst == 0 || burst > maxBurst {
		burst = bytes / 40
	}
	burst = min(max(burst, least), maxBurst)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0),
			Parent: netlink.HANDLE_ROOT},
		Rate:   bytes,
		Limit:  uint32(bytes/40 + burst),
		Buffer: uint32(netlink.TickInUsec() * float64(burst) * 1e6 / float64(bytes)),
	}
}
