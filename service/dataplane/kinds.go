package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"wayleave.dev/kernel"
	kernelipt "wayleave.dev/kernel/iptables"
	kernelipvs "wayleave.dev/kernel/ipvs"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/ebpf"
	"wayleave.dev/service/iptables"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
)

// Kind is what a data plane offers to Services: a mode of the service proxy.
type Kind interface {
	// Name is the name of the data plane in the setting mode.
	Name() string
	// Possible returns why a node cannot have the mode, and what to do; nil if it can.
	Possible(context.Context, Planes, kernel.Features) error
	// Make creates the mode. The kernel may load modules, and is not changed otherwise.
	Make(context.Context, Planes) (Made, error)
	// Former creates the modes of this kind that may have left state, except the running one, which may be nil.
	Former(p Planes, running service.Mode) ([]service.Mode, error)
	// Text returns the plans as they would be in the kernel.
	Text(plans map[model.Name]service.Plan, local service.NodeFacts, scheduler string) string
}

// Made is a mode with what to report about it.
type Made struct {
	service.Mode
	// Fact is a line for the status. Problem is what the node lacks for this mode. Both may be empty.
	Fact, Problem string
	// Sysctls are the values that the mode needs, by name below net.
	Sysctls map[string]string
}

// Kinds are all modes, the default first.
func Kinds() []Kind { return []Kind{nftablesKind{}, iptablesKind{}, ipvsKind{}, ebpfKind{}} }

// ByName returns the kind with the name in the setting mode.
func ByName(name string) (Kind, error) {
	var names []string
	for _, k := range Kinds() {
		if k.Name() == name {
			return k, nil
		}
		names = append(names, k.Name())
	}
	last := len(names) - 1
	return nil, fmt.Errorf("%q is not built; %s and %s are", name, strings.Join(names[:last], ", "), names[last])
}

type nftablesKind struct{}

func (nftablesKind) Name() string { return "nftables" }

func (nftablesKind) Possible(_ context.Context, _ Planes, features kernel.Features) error {
	return features.Refusal()
}

func (nftablesKind) Make(_ context.Context, p Planes) (Made, error) {
	return Made{Mode: p.Nftables()}, nil
}

func (nftablesKind) Former(p Planes, running service.Mode) ([]service.Mode, error) {
	switch running.(type) {
	case *nftables.Mode, *ebpf.Mode: // the latter contains the former
		return nil, nil
	}
	return []service.Mode{p.Nftables()}, nil
}

func (nftablesKind) Text(plans map[model.Name]service.Plan, local service.NodeFacts, _ string) string {
	return nftables.Text(plans, local)
}

type iptablesKind struct{}

func (iptablesKind) Name() string { return "iptables" }

func (iptablesKind) Possible(ctx context.Context, p Planes, _ kernel.Features) error {
	if !kernelipt.Installed() {
		return errors.New("the program iptables-nft-restore is missing; Wayleave's image contains it")
	}
	_, err := kernelipt.Detect(ctx, p.NSFD)
	return err
}

func (iptablesKind) Make(ctx context.Context, p Planes) (Made, error) {
	found, err := kernelipt.Detect(ctx, p.NSFD)
	if err != nil {
		return Made{}, fmt.Errorf("mode iptables: %w", err)
	}
	flavour := found.Flavour
	if p.Flavour != "auto" && p.Flavour != "" {
		flavour, found.Why = kernelipt.Flavour(p.Flavour), "set"
	}
	m, err := p.Iptables(flavour)
	if err != nil {
		return Made{}, err
	}
	made := Made{Mode: m, Fact: fmt.Sprintf(
		"iptables-%s (%s); session affinity knows the last %s clients of an endpoint (xt_recent.ip_list_tot)",
		flavour, found.Why, recentClients())}
	if found.Mixed {
		made.Problem = fmt.Sprintf(
			"rules are in iptables-nft and in iptables-legacy, and packets pass both; the service "+
				"proxy uses iptables-%s", flavour)
	}
	return made, nil
}

// recentClients is the limit of xt_recent, which is fixed once the module is loaded. If it is not loaded yet, the
// host's modprobe.d may set another limit.
func recentClients() string {
	raw, err := os.ReadFile("/sys/module/xt_recent/parameters/ip_list_tot")
	if err != nil {
		return "100, or as many as modprobe.d sets,"
	}
	return strings.TrimSpace(string(raw))
}

func (iptablesKind) Former(p Planes, running service.Mode) (out []service.Mode, err error) {
	if !kernelipt.Installed() {
		return nil, nil
	}
	for _, flavour := range []kernelipt.Flavour{kernelipt.NFT, kernelipt.Legacy} {
		m, err := p.Iptables(flavour)
		if err != nil {
			return nil, err
		}
		if r, ok := running.(*iptables.Mode); !ok || r.Flavour() != flavour {
			out = append(out, m)
		}
	}
	return out, nil
}

func (iptablesKind) Text(plans map[model.Name]service.Plan, local service.NodeFacts, _ string) string {
	return iptables.Text(plans, local)
}

type ipvsKind struct{}

func (ipvsKind) Name() string { return "ipvs" }

func (ipvsKind) Possible(_ context.Context, p Planes, features kernel.Features) error {
	if err := kernelipvs.Available(); err != nil {
		return fmt.Errorf("kernel %s has no IPVS, and none could be loaded; on the node try: modprobe -a ip_vs "+
			"ip_vs_%s; without that module, mode may be nftables or iptables: %w", features.Release, p.Scheduler, err)
	}
	return nil
}

func (ipvsKind) Make(_ context.Context, p Planes) (Made, error) {
	m, err := p.IPVS()
	if err != nil {
		return Made{}, fmt.Errorf("mode ipvs: %w", err)
	}
	return Made{Mode: m, Sysctls: ipvs.Sysctls(), Fact: fmt.Sprintf(
		"IPVS, scheduler %s; former endpoints keep their connections for at most %s", p.Scheduler, p.Drain)}, nil
}

func (ipvsKind) Former(p Planes, running service.Mode) ([]service.Mode, error) {
	if _, ok := running.(*ipvs.Mode); ok || !ipvsLoaded() {
		return nil, nil
	}
	m, err := p.IPVS()
	if err != nil {
		return nil, err
	}
	return []service.Mode{m}, nil
}

// ipvsLoaded reports whether there may be virtual servers: looking must not load the module.
func ipvsLoaded() bool {
	_, err := os.Stat("/proc/net/ip_vs")
	return err == nil
}

func (ipvsKind) Text(plans map[model.Name]service.Plan, local service.NodeFacts, scheduler string) string {
	return ipvs.Text(plans, local, scheduler)
}

type ebpfKind struct{}

func (ebpfKind) Name() string { return "ebpf" }

func (ebpfKind) Possible(_ context.Context, p Planes, features kernel.Features) error {
	if err := features.Refusal(); err != nil {
		return err
	}
	k, err := p.sockets()
	if err == nil {
		err = k.Possible()
	}
	if err != nil {
		return fmt.Errorf("kernel %s: %w; mode may be nftables", features.Release, err)
	}
	return nil
}

func (ebpfKind) Make(_ context.Context, p Planes) (Made, error) {
	m, err := p.EBPF()
	if err != nil {
		return Made{}, fmt.Errorf("mode ebpf: %w", err)
	}
	return Made{Mode: m, Fact: "eBPF at the sockets of pods: connect, sendmsg, recvmsg and getpeername; nftables " +
		"serves everything else"}, nil
}

func (ebpfKind) Former(p Planes, running service.Mode) ([]service.Mode, error) {
	if _, ok := running.(*ebpf.Mode); ok {
		return nil, nil
	}
	return p.Sockets()
}

func (ebpfKind) Text(plans map[model.Name]service.Plan, local service.NodeFacts, _ string) string {
	return ebpf.Text(plans, local)
}
