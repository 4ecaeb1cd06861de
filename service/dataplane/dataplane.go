// Package dataplane creates the modes of a node's service proxy. Once one is in place, it removes the others from the
// kernel: Wayleave's, and what a stopped kube-proxy left.
//
// To change the mode, the new mode is synced, then Leave is called. In between, packets meet the rules of both, which
// lead to the same endpoints. Established connections continue in connection tracking; those of IPVS until they end, or
// until Drain has passed.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"wayleave.dev/internal/statefile"
	"wayleave.dev/kernel/bpf/sockets"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/ipset"
	kernelipt "wayleave.dev/kernel/iptables"
	kernelipvs "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/kernel/sysctl"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/ebpf"
	"wayleave.dev/service/iptables"
	"wayleave.dev/service/ipvs"
	"wayleave.dev/service/nftables"
)

// Planes creates the modes of one network namespace. It is a value; NFT and Track must be of that namespace.
type Planes struct {
	// NSFD is the descriptor of the namespace; 0 for that of this process.
	NSFD  int
	NFT   *nft.Kernel
	Track conntrack.Flusher
	// Flavour is the flavour of iptables; empty for the one that the node uses.
	Flavour string
	// Scheduler and Drain are those of ipvs.Options.
	Scheduler string
	Drain     time.Duration
	// Bypass is ipvs.Options.BypassIPVS, and selects what the mode ebpf leaves to nftables; nil: none.
	Bypass func(model.Name) bool
	// Cgroup is where the hierarchy of cgroup version 2 is mounted, or the folder above it. BPF is a BPF file system.
	// Both are needed by the mode ebpf only.
	Cgroup, BPF string
	// LockFile is the file that iptables-legacy programs on the host lock; empty for the default path.
	LockFile string
	// Memory is that of kernel/iptables.Kernel.
	Memory string
	// Sysctl is that of kernel/ipvs.Kernel.
	Sysctl string
	// Tell is that of kernel/iptables.Kernel.
	Tell statefile.Tell
}

// Nftables creates the mode nftables; the kernel is not changed.
func (p Planes) Nftables() *nftables.Mode { return nftables.New(p.NFT, p.Track) }

// Iptables creates the mode iptables in one of its flavours; the kernel is not changed.
func (p Planes) Iptables(flavour kernelipt.Flavour) (*iptables.Mode, error) {
	k, err := kernelipt.NewKernel(p.NSFD, flavour)
	if err != nil {
		return nil, err
	}
	k.LockFile, k.Memory, k.Tell = p.LockFile, p.Memory, p.Tell
	return iptables.New(k, p.Track), nil
}

// IPVS creates the mode ipvs, for which the kernel loads ip_vs.
func (p Planes) IPVS() (*ipvs.Mode, error) {
	k, err := kernelipvs.NewKernel(p.NSFD)
	if err != nil {
		return nil, err
	}
	k.Sysctl = p.Sysctl
	return ipvs.New(k, nftables.NewIPVSCompanion(p.NFT, p.Track, p.Bypass), p.Track,
		ipvs.Options{Scheduler: p.Scheduler, Drain: p.Drain, BypassIPVS: p.Bypass}), nil
}

// EBPF creates the mode ebpf; the kernel is not changed.
func (p Planes) EBPF() (*ebpf.Mode, error) {
	k, err := p.sockets()
	if err != nil {
		return nil, err
	}
	return ebpf.New(p.Nftables(), k, p.Bypass), nil
}

// pinFolder is Wayleave's folder in the BPF file system.
const pinFolder = "wayleave"

func (p Planes) sockets() (*sockets.Kernel, error) {
	cgroup, err := sockets.FindCgroup(p.Cgroup)
	if err != nil {
		return nil, err
	}
	return &sockets.Kernel{NSFD: p.NSFD, Cgroup: cgroup, Folder: filepath.Join(p.BPF, pinFolder)}, nil
}

// Sockets returns the programs of the mode ebpf that may have been left, without its rules.
func (p Planes) Sockets() ([]service.Mode, error) {
	if p.BPF == "" {
		return nil, nil
	}
	k := &sockets.Kernel{NSFD: p.NSFD, Folder: filepath.Join(p.BPF, pinFolder)}
	return []service.Mode{ebpf.Sockets{Mode: ebpf.New(p.Nftables(), k, nil)}}, nil
}

// Others returns the modes that may have left state, except the running one; nil means that none runs.
func (p Planes) Others(running service.Mode) (out []service.Mode, err error) {
	for _, k := range Kinds() {
		former, err := k.Former(p, running)
		if err != nil {
			return nil, err
		}
		out = append(out, former...)
	}
	return out, nil
}

// leaver is a mode that lets its connections end before it is removed.
type leaver interface {
	Leave(context.Context) error
}

// Leave removes the other modes from the kernel, and what a stopped kube-proxy left. The running mode must be in place:
// established connections continue. It returns when the last connection of IPVS has ended, or after Drain. say is
// called with each finding.
func (p Planes) Leave(ctx context.Context, running service.Mode, say func(string)) error {
	others, err := p.Others(running)
	errs := []error{err, p.leaveTables(ctx)}
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
	// Rules refer to the sets, so sets are removed last.
	return errors.Join(append(errs, p.leaveSets(ctx))...)
}

// leaveTables removes the tables of kube-proxy's mode nftables. Its chains of the modes iptables and ipvs are removed
// by Wayleave's mode iptables, and its virtual servers by mode ipvs.
func (p Planes) leaveTables(ctx context.Context) error {
	var errs []error
	for _, f := range nft.Families() {
		errs = append(errs, p.NFT.Remove(ctx, nft.Table{Family: f, Name: "kube-proxy"}))
	}
	return errors.Join(errs...)
}

func (p Planes) leaveSets(ctx context.Context) error {
	k, err := ipset.NewKernel(p.NSFD)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range proxySets() {
		errs = append(errs, k.Destroy(ctx, name))
	}
	return errors.Join(errs...)
}

// proxySets are the sets that kube-proxy creates in mode ipvs. Other programs have sets whose names begin alike.
func proxySets() (out []string) {
	for _, name := range []string{
		"LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL",
		"LOAD-BALANCER", "LOAD-BALANCER-LOCAL", "LOAD-BALANCER-FW", "LOAD-BALANCER-SOURCE-IP",
		"LOAD-BALANCER-SOURCE-CIDR",
		"NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP", "NODE-PORT-LOCAL-UDP", "NODE-PORT-SCTP-HASH",
		"NODE-PORT-LOCAL-SCTP-HASH",
		"HEALTH-CHECK-NODE-PORT", "IPVS-IPS",
	} {
		const longest = 31 // bytes of a set's name; kube-proxy truncates longer ones
		six := "KUBE-6-" + name
		out = append(out, "KUBE-"+name, six[:min(len(six), longest)])
	}
	return out
}

func summary(left []string) string {
	const shown = 3
	if len(left) <= shown {
		return strings.Join(left, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(left[:shown], ", "), len(left)-shown)
}

// EnsureSysctls sets the sysctls that a mode needs.
func EnsureSysctls(set sysctl.Set, mode Made, l service.NodeFacts) error {
	want := map[string]string{}
	maps.Copy(want, mode.Sysctls)
	if l.Localhost() {
		want["ipv4/conf/all/route_localnet"] = "1"
	}
	var errs []error
	for name, value := range want {
		errs = append(errs, set.Ensure(name, value))
	}
	return errors.Join(errs...)
}
