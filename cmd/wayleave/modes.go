package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"wayleave.dev/config"
	"wayleave.dev/kernel/conntrack"
	kernelipt "wayleave.dev/kernel/iptables"
	kernelipvs "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/iptables"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
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

// dataPlanes makes the modes of a node.
type dataPlanes struct {
	nsfd  int // 0 for the namespace of this process
	nft   *nft.Kernel
	track conntrack.Flusher
	cfg   config.Config
	// lock is the file that programs of iptables-legacy on the host lock.
	lock string
}

// whole says that kube-dns is served by rules where this node answers DNS itself: with
// a virtual server IPVS would have the packets first.
func (d dataPlanes) whole(k model.Name) bool {
	return d.cfg.DNS.Enabled && k == model.Name{Namespace: writeback.DNSNamespace, Name: writeback.DNSName}
}

func (d dataPlanes) nftables() *nftables.Mode { return nftables.New(d.nft, d.track) }

func (d dataPlanes) iptables(flavour kernelipt.Flavour) (*iptables.Mode, error) {
	k, err := kernelipt.NewKernel(d.nsfd, flavour)
	if err != nil {
		return nil, err
	}
	k.LockFile = d.lock
	return iptables.New(k, d.track), nil
}

func (d dataPlanes) ipvs() (*ipvs.Mode, error) {
	k, err := kernelipvs.NewKernel(d.nsfd)
	if err != nil {
		return nil, err
	}
	return ipvs.New(k, nftables.Beside(d.nft, d.track, d.whole), d.track,
		ipvs.Options{Scheduler: d.cfg.IPVS.Scheduler, Drain: d.cfg.IPVS.Drain, Whole: d.whole}), nil
}

// others are the modes that may have left something, but for the one that runs.
func (d dataPlanes) others(running service.Mode) (out []service.Mode, err error) {
	if _, ok := running.(*nftables.Mode); !ok {
		out = append(out, d.nftables())
	}
	if kernelipt.Installed() {
		for _, flavour := range []kernelipt.Flavour{kernelipt.NFT, kernelipt.Legacy} {
			m, err := d.iptables(flavour)
			if err != nil {
				return nil, err
			}
			if r, ok := running.(*iptables.Mode); !ok || r.Flavour() != flavour {
				out = append(out, m)
			}
		}
	}
	if _, ok := running.(*ipvs.Mode); !ok && ipvsLoaded() {
		m, err := d.ipvs()
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// ipvsLoaded says whether there may be virtual servers: looking must not load the module.
func ipvsLoaded() bool {
	_, err := os.Stat("/proc/net/ip_vs")
	return err == nil
}

// leaver is a mode that lets its connections end before it goes.
type leaver interface {
	Leave(context.Context) error
}

// leave takes the other modes out of the kernel, and what a kube-proxy left that has
// ended. The running mode is in place: connections that are established live on.
func (d dataPlanes) leave(ctx context.Context, running service.Mode, say func(string)) error {
	others, err := d.others(running)
	errs := []error{err, d.leaveKubeProxy(ctx)}
	for _, m := range others {
		left, err := m.Remains(ctx)
		if err != nil || len(left) == 0 {
			errs = append(errs, err)
			continue
		}
		say(fmt.Sprintf("another mode was here: %s", summary(left)))
		if l, ok := m.(leaver); ok {
			errs = append(errs, l.Leave(ctx))
			continue
		}
		errs = append(errs, m.Remove(ctx))
	}
	return errors.Join(errs...)
}

// leaveKubeProxy removes what only kube-proxy has; its chains are those of the mode
// iptables.
func (d dataPlanes) leaveKubeProxy(ctx context.Context) error {
	var errs []error
	for _, f := range nft.Families() {
		errs = append(errs, d.nft.Remove(ctx, nft.Table{Family: f, Name: "kube-proxy"}))
	}
	return errors.Join(errs...)
}

func summary(left []string) string {
	const shown = 3
	if len(left) <= shown {
		return strings.Join(left, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(left[:shown], ", "), len(left)-shown)
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
				"rules are in iptables-nft and in iptables-legacy, and packets pass both; the service proxy uses iptables-%s", flavour)}}
		}
		a.problems.Set("service", "iptables", problems)
		a.fact("service", fmt.Sprintf("iptables-%s (%s); session affinity knows the last %s clients of an endpoint (xt_recent.ip_list_tot)", flavour, found.Why, recentClients()))
		return a.planes.iptables(flavour)
	case modeIPVS:
		m, err := a.planes.ipvs()
		if err != nil {
			return nil, fmt.Errorf("mode ipvs: %w", err)
		}
		for name, value := range ipvs.Sysctls() {
			if err := hostSysctls().Ensure(name, value); err != nil {
				return nil, fmt.Errorf("mode ipvs: %w", err)
			}
		}
		a.fact("service", fmt.Sprintf("IPVS, scheduler %s; former endpoints keep their connections for at most %s", a.cfg.IPVS.Scheduler, a.cfg.IPVS.Drain))
		return m, nil
	}
	if err := a.features.Refusal(); err != nil {
		return nil, err
	}
	return a.planes.nftables(), nil
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
	for wait := 50 * time.Millisecond; ctx.Err() == nil; {
		if a.states()["service"].Synced {
			err := a.planes.leave(ctx, running, func(what string) { a.log.Info(what) })
			if a.say("former service proxy", err); err == nil {
				return nil
			}
			wait = 10 * time.Second
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return ctx.Err()
}
