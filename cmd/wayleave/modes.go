package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"wayleave.dev/config"
	"wayleave.dev/kernel"
	"wayleave.dev/kernel/conntrack"
	kernelipt "wayleave.dev/kernel/iptables"
	kernelipvs "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/sysctl"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/writeback"
)

// Names of modes, as in the settings.
const (
	modeNftables = "nftables"
	modeIptables = "iptables"
	modeIPVS     = "ipvs"
)

// modeOf is what the setting stands for.
func modeOf(cfg config.Config) string {
	if cfg.Mode == "auto" {
		return modeNftables
	}
	return cfg.Mode
}

// newPlanes makes the modes of a node.
func newPlanes(nsfd int, tables *nft.Kernel, track conntrack.Flusher, cfg config.Config,
	stateDir string) dataplane.Planes {
	return dataplane.Planes{NSFD: nsfd, NFT: tables, Track: track, Memory: stateDir + "/iptables",
		Scheduler: cfg.IPVS.Scheduler, Drain: cfg.IPVS.Drain,
		// kube-dns is served by rules where this node answers DNS itself: with a virtual
		// server IPVS would have the packets first.
		BypassIPVS: func(k model.Name) bool {
			return cfg.DNS.Enabled && k == model.Name{Namespace: writeback.DNSNamespace, Name: writeback.DNSName}
		}}
}

// possible says why this node cannot have the mode that the settings ask for.
func possible(ctx context.Context, nsfd int, cfg config.Config, features kernel.Features) error {
	switch modeOf(cfg) {
	case modeIptables:
		if !kernelipt.Installed() {
			return errors.New("the program iptables-nft-restore is not here; the image of Wayleave has it")
		}
		_, err := kernelipt.Detect(ctx, nsfd)
		return err
	case modeIPVS:
		if err := kernelipvs.Available(); err != nil {
			return fmt.Errorf("kernel %s has no IPVS, and none could be loaded; on the node try: modprobe -a ip_vs "+
				"ip_vs_%s; without that module, mode may be nftables or iptables: %w",
				features.Release, cfg.IPVS.Scheduler, err)
		}
		return nil
	}
	return features.Refusal()
}

// checkMode refuses a mode that is not possible here while another agent still owns the
// node: that one goes on, and a rollout waits. It is reported before this one ends.
func (a *agent) checkMode(ctx context.Context) error {
	if !a.cfg.Service.Enabled {
		return nil
	}
	err := possible(ctx, 0, a.cfg, a.features)
	if err == nil {
		return nil
	}
	reason := fmt.Sprintf("found %q; %v; the rules on this node stay as they are", a.cfg.Mode, err)
	a.problems.Set("service", "mode", []model.Problem{{Kind: "Node", Object: model.Name{Name: a.node}, Field: "mode",
		Reason: reason}})
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := a.lease().Report(ctx, a.problems.List()); err != nil {
		a.log.Warn("cannot report the refused mode", "err", err)
	}
	return fmt.Errorf("settings: mode: %s", reason)
}

// mode makes the data plane that the settings ask for.
func (a *agent) mode(ctx context.Context) (service.Mode, error) {
	switch modeOf(a.cfg) {
	case modeIptables:
		found, err := kernelipt.Detect(ctx, 0)
		if err != nil {
			return nil, fmt.Errorf("mode iptables: %w", err)
		}
		flavour := found.Flavour
		if set := a.cfg.Iptables.Flavour; set != "auto" {
			flavour, found.Why = kernelipt.Flavour(set), "set"
		}
		var problems []model.Problem
		if found.Mixed {
			problems = []model.Problem{{Kind: "Node", Object: model.Name{Name: a.node}, Reason: fmt.Sprintf(
				"rules are in iptables-nft and in iptables-legacy, and packets pass both; the service proxy "+
					"uses iptables-%s", flavour)}}
		}
		a.problems.Set("service", "iptables", problems)
		a.fact("service", fmt.Sprintf(
			"iptables-%s (%s); session affinity knows the last %s clients of an endpoint (xt_recent.ip_list_tot)",
			flavour, found.Why, recentClients()))
		return a.planes.Iptables(flavour)
	case modeIPVS:
		m, err := a.planes.IPVS()
		if err != nil {
			return nil, fmt.Errorf("mode ipvs: %w", err)
		}
		a.fact("service", fmt.Sprintf("IPVS, scheduler %s; former endpoints keep their connections for at most %s",
			a.cfg.IPVS.Scheduler, a.cfg.IPVS.Drain))
		return m, nil
	}
	return a.planes.Nftables(), nil
}

// ensureSysctls sets what a mode needs of the node.
func ensureSysctls(set sysctl.Set, mode service.Mode, l service.NodeFacts) error {
	want := map[string]string{}
	if _, ok := mode.(*ipvs.Mode); ok {
		want = ipvs.Sysctls()
	}
	if l.Localhost() {
		want["ipv4/conf/all/route_localnet"] = "1"
	}
	var errs []error
	for name, value := range want {
		errs = append(errs, set.Ensure(name, value))
	}
	return errors.Join(errs...)
}

// setTracking sets the limits of connection tracking once the mode is in place: before, the kernel may have none.
func (a *agent) setTracking(ctx context.Context) error {
	return a.onceServed(ctx, "connection tracking", time.Minute, func() error {
		err := service.Tracking(a.cfg.Service.Tracking).Set(hostSysctls(a.tellState), runtime.NumCPU())
		if errors.Is(err, fs.ErrPermission) { // a node that is a namespace has the limit of its host
			a.log.Warn("connection tracking is not set as asked", "err", err)
			return nil
		}
		return err
	})
}

// recentClients is the limit of xt_recent, which is fixed once the kernel has it. Where it
// is a module that nobody has needed yet, the host's modprobe.d may say another.
func recentClients() string {
	raw, err := os.ReadFile("/sys/module/xt_recent/parameters/ip_list_tot")
	if err != nil {
		return "100, or as many as modprobe.d says,"
	}
	return strings.TrimSpace(string(raw))
}

// leaveOthers waits until the running mode is in place, and then takes the others out.
func (a *agent) leaveOthers(ctx context.Context, running service.Mode) error {
	return a.onceServed(ctx, "former service proxy", 10*time.Second, func() error {
		return a.planes.Leave(ctx, running, func(what string) { a.log.Info(what) })
	})
}

// onceServed waits until the running mode is in place, and then does something until it succeeds; what fails is in
// status.
func (a *agent) onceServed(ctx context.Context, what string, retry time.Duration, do func() error) error {
	for wait := 50 * time.Millisecond; ctx.Err() == nil; {
		if a.states()["service"].Synced {
			err := do()
			if a.say(what, err); err == nil {
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
