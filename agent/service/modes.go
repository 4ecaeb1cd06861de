package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"runtime"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
)

// newPlanes makes the modes of a node.
func newPlanes(nsfd int, tables *nft.Kernel, track conntrack.Flusher, cfg config.Config,
	dirs agent.Dirs) dataplane.Planes {
	return dataplane.Planes{NSFD: nsfd, NFT: tables, Track: track, Memory: dirs.State + "/iptables",
		Cgroup: dirs.Cgroup, BPF: dirs.BPF,
		Flavour: cfg.Iptables.Flavour, Scheduler: cfg.IPVS.Scheduler, Drain: cfg.IPVS.Drain,
		// kube-dns is served by rules where this node answers DNS itself: with a virtual
		// server IPVS would have the packets first, and a socket would be led past the server.
		Bypass: func(k model.Name) bool {
			return cfg.DNS.Enabled && k == agent.ClusterDNS()
		}}
}

// possible says why this node cannot have the mode that the settings ask for.
func possible(ctx context.Context, cfg config.Config, p dataplane.Planes, features kernel.Features) error {
	kind, err := dataplane.ByName(cfg.DataPlane())
	if err != nil {
		return err
	}
	return kind.Possible(ctx, p, features)
}

// checkMode refuses a mode that is not possible here while another agent still owns the
// node: that one goes on, and a rollout waits. It is reported before this one ends.
func (f *Feature) checkMode(ctx context.Context, n *agent.Node) error {
	if !n.Config.Service.Enabled {
		return nil
	}
	err := possible(ctx, n.Config, f.planes, n.Kernel)
	if err == nil {
		return nil
	}
	reason := fmt.Sprintf("found %q; %v; the rules on this node stay as they are", n.Config.Mode, err)
	n.Problems.Set("service", "mode", []model.Problem{n.Problem("mode", reason)})
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := n.Lease().Report(ctx, n.Problems.List()); err != nil {
		n.Log.Warn("cannot report the refused mode", "err", err)
	}
	return fmt.Errorf("settings: mode: %s", reason)
}

// mode makes the mode that the settings ask for, and says what there is to say about it.
func (f *Feature) mode(ctx context.Context, n *agent.Node) (dataplane.Made, error) {
	kind, err := dataplane.ByName(n.Config.DataPlane())
	if err != nil {
		return dataplane.Made{}, fmt.Errorf("settings: mode: %w", err)
	}
	made, err := kind.Make(ctx, f.planes)
	if err != nil {
		return dataplane.Made{}, err
	}
	var problems []model.Problem
	if made.Problem != "" {
		problems = []model.Problem{n.Problem("", made.Problem)}
	}
	n.Problems.Set("service", kind.Name(), problems)
	n.SetFact(f.Name(), "mode", made.Fact)
	return made, nil
}

// setTracking sets the limits of connection tracking once the mode is in place: before, the kernel may have none.
func setTracking(ctx context.Context, n *agent.Node) error {
	return onceServed(ctx, n, "connection tracking", time.Minute, func() error {
		err := service.Tracking(n.Config.Service.Tracking).Set(n.Sysctls(), runtime.NumCPU())
		if errors.Is(err, fs.ErrPermission) { // a node that is a namespace has the limit of its host
			n.Log.Warn("connection tracking is not set as asked", "err", err)
			return nil
		}
		return err
	})
}

// leaveOthers waits until the running mode is in place, and then takes the others out.
func (f *Feature) leaveOthers(ctx context.Context, n *agent.Node, running service.Mode) error {
	return onceServed(ctx, n, "former service proxy", 10*time.Second, func() error {
		return f.planes.Leave(ctx, running, func(what string) { n.Log.Info(what) })
	})
}

// onceServed waits until the running mode is in place, and then does something until it succeeds; what fails is in
// status.
func onceServed(ctx context.Context, n *agent.Node, what string, retry time.Duration, do func() error) error {
	for wait := 50 * time.Millisecond; ctx.Err() == nil; {
		if n.States()[loopName].Synced {
			err := do()
			if n.SetCondition(what, err); err == nil {
				return nil
			}
			wait = retry
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return ctx.Err()
}

// leftModes are those that may have something on a host. Chains with kube-proxy's names are kube-proxy's where it runs.
func leftModes(ctx context.Context, h *agent.Host) ([]service.Mode, error) {
	track, err := conntrack.NewKernel(h.FD())
	if err != nil {
		return nil, err
	}
	planes := newPlanes(h.FD(), h.NFT, track, config.Default(), h.Dirs)
	if _, found := kubeProxy(ctx, (&net.Dialer{}).DialContext); found {
		own, err := planes.Sockets()
		return append(own, planes.Nftables()), err
	}
	return planes.Others(nil)
}

// Uninstall implements agent.Uninstaller.
func (f *Feature) Uninstall(ctx context.Context, h *agent.Host) error {
	modes, err := leftModes(ctx, h)
	errs := []error{err}
	for _, m := range modes {
		errs = append(errs, m.Remove(ctx))
	}
	return errors.Join(errs...)
}

// Remains implements agent.Uninstaller.
func (f *Feature) Remains(ctx context.Context, h *agent.Host) (left []string, err error) {
	modes, err := leftModes(ctx, h)
	errs := []error{err}
	for _, m := range modes {
		found, err := m.Remains(ctx)
		left, errs = append(left, found...), append(errs, err)
	}
	return left, errors.Join(errs...)
}
