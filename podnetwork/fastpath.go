package podnetwork

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"wayleave.dev/kernel/bpf/fastpath"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/ipam"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/podnetwork/veth"
)

// FastPath is how packets of connections are redirected past the network stack. Whoever changes rules that decide about
// new connections calls its Revoke.
type FastPath struct {
	// Conn is the kernel; nil: there is none.
	Conn fastpath.Conn
	// On is the setting. Programs that an earlier agent left are removed if it is false.
	On bool
}

// fastPathEvery is how often links, programs and queueing disciplines are inspected: others change them, and the kernel
// reports it for none of them.
const fastPathEvery = 5 * time.Second

// liberal has connection tracking accept packets whose predecessors it has not seen.
const liberal = "netfilter/nf_conntrack_tcp_be_liberal"

// fastPathLinks rings when the link of a pod was made or removed.
type fastPathLinks struct {
	*veth.Host
	ring func()
}

func (l fastPathLinks) Setup(podNS *os.File, want veth.Link) (net.HardwareAddr, error) {
	defer l.ring()
	return l.Host.Setup(podNS, want)
}

func (l fastPathLinks) Teardown(hostName string) error {
	defer l.ring()
	return l.Host.Teardown(hostName)
}

// ringFastPath has the links looked at.
func (n *Network) ringFastPath() {
	select {
	case n.moved <- struct{}{}:
	default:
	}
}

// fastPath keeps the programs at the links of pods, and at links to other nodes unless packets are encrypted: then each
// packet must meet the rules that guard encryption.
func (n *Network) fastPath(ctx context.Context) error {
	if n.FastPath.Conn == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if !n.FastPath.On {
		return n.leaveFastPath(ctx)
	}
	select {
	case <-n.looked:
	case <-ctx.Done():
		return ctx.Err()
	}
	for ctx.Err() == nil {
		report, err := n.setFastPath(ctx)
		n.fastPathDone(report, err)
		again := time.After(fastPathEvery)
		if errors.Is(err, fastpath.ErrUnsupported) {
			<-ctx.Done() // it stays so until the next boot
		}
		select {
		case <-ctx.Done():
		case <-n.moved:
		case <-again:
		}
	}
	return ctx.Err()
}

// leaveFastPath removes what an earlier agent left.
func (n *Network) leaveFastPath(ctx context.Context) error {
	for {
		err := n.FastPath.Conn.Remove(ctx)
		n.fastPathDone(fastpath.Report{}, err)
		if err == nil {
			<-ctx.Done()
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(fastPathEvery):
		}
	}
}

// setFastPath writes the pods and links as they are now.
func (n *Network) setFastPath(ctx context.Context) (fastpath.Report, error) {
	err := n.host.Inside(func() error { return sysctls(n.Config).Ensure(liberal, "1") })
	if errors.Is(err, fs.ErrNotExist) {
		// Connection tracking is not in use yet: there is no connection to redirect.
		return fastpath.Report{}, nil
	}
	if err != nil {
		return fastpath.Report{}, errors.Join(err, n.FastPath.Conn.Remove(ctx))
	}
	return n.FastPath.Conn.Set(ctx, n.fastPathState(n.leases.List()))
}

func (n *Network) fastPathState(leases []ipam.Lease) (s fastpath.State) {
	for _, l := range leases {
		if l.HostLink != "" {
			s.Pods = append(s.Pods, fastpath.Pod{Link: l.HostLink, Addrs: l.IPs})
		}
	}
	if local := n.links.Load(); local != nil && !n.Config.Encryption.On() {
		s.Uplinks = []string{local.Uplink.Name, routes.Device}
	}
	return s
}

// fastPathDone keeps the result for status, and reports an error.
func (n *Network) fastPathDone(r fastpath.Report, err error) {
	n.accelerated.Store(&r)
	var problems []model.Problem
	if err != nil {
		problems = []model.Problem{{Kind: "Node", Object: model.Name{Name: n.Node}, Field: "mode",
			Reason: "packets of pods take no fast path: " + err.Error()}}
	}
	n.report("podnetwork", "fast path", problems)
}

// fastPathFacts are lines for status.
func (n *Network) fastPathFacts() []string {
	r := n.accelerated.Load()
	if n.FastPath.Conn == nil || !n.FastPath.On || r == nil {
		return nil
	}
	sum, _ := n.FastPath.Conn.Redirected()
	facts := []string{fmt.Sprintf("fast path (tcx) at %d links of pods and %d links to nodes; packets redirected to "+
		"pods: %d, to nodes: %d; connections begun: %d", r.Pods, r.Uplinks, sum.Local, sum.Remote, sum.Begun)}
	if len(r.Shaped) > 0 {
		facts = append(facts, fmt.Sprintf("links of pods with a bandwidth limit, without fast path: %v",
			slices.Sorted(slices.Values(r.Shaped))))
	}
	return facts
}

// Redirected is how many packets took the fast path, for metrics.
func (n *Network) Redirected() (fastpath.Redirected, error) {
	if n.FastPath.Conn == nil || !n.FastPath.On {
		return fastpath.Redirected{}, nil
	}
	return n.FastPath.Conn.Redirected()
}
