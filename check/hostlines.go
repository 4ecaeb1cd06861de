//go:build linux

package check

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
)

// Host judges the facts of a node. where names the node, and is empty for the node of this command.
func Host(where string, f HostFacts, cfg config.Config) Section {
	l := &lines{where: where}
	l.kernel(f)
	l.want(f.Sysctls == "", "sysctls", "sysctls of the network can be written", Failed,
		"sysctls of the network cannot be written: "+f.Sysctls, "run as root; mount -o remount,rw /proc/sys")
	l.want(f.CgroupV2, "cgroup", "cgroups are of version 2", Warning,
		"cgroups are of version 1; kubelets from 1.35 on refuse them by default",
		"boot with systemd.unified_cgroup_hierarchy=1")
	l.want(!f.Unsynced, "clock", "the clock is synchronised", Warning, "nothing synchronises the clock",
		"timedatectl set-ntp true")
	l.kubelet(f)
	l.ports(f, cfg)
	l.others(f, cfg)
	return Section{"node", l.list}
}

func (l *lines) kernel(f HostFacts) {
	l.want(isKernel(f.Kernel), "kernel", fmt.Sprintf("the kernel is %d.%d or later", minKernelMajor, minKernelMinor),
		Failed, fmt.Sprintf("the kernel is %q; %d.%d or later is needed", f.Kernel, minKernelMajor, minKernelMinor),
		"boot a later kernel, as of apt-get install linux-image-amd64")
	l.want(f.NFTables == "", "nftables", "the kernel has nf_tables", Failed, f.NFTables, "modprobe nf_tables")
	l.want(len(f.Missing) == 0, "modules", "all modules of nf_tables are there", Failed,
		"modules are missing: "+strings.Join(f.Missing, " "), "modprobe -a "+strings.Join(f.Missing, " "))
	l.want(f.VXLAN, "vxlan", "the kernel has VXLAN", Warning, "the kernel has no VXLAN, which nodes of different "+
		"networks need", "modprobe vxlan; or the setting routing: direct")
}

func (l *lines) kubelet(f HostFacts) {
	k := f.Kubelet
	switch {
	case k.ServerProblem != "":
		l.want(false, "kubelet-kubeconfig", "", Failed, k.ServerProblem,
			"mend that file; or the setting apiServer: URL")
	case k.Server == "":
		l.want(false, "kubelet-kubeconfig", "", Warning,
			"no kubelet's kubeconfig is in a known place: the node has not "+
				"joined a cluster, or its distribution is unknown",
			"join the node first; or the setting apiServer: URL")
	default:
		l.want(f.Unreachable == "", "api-server", "the API server "+k.Server+" can be reached", Failed,
			"the API server of "+k.From+" cannot be reached: "+f.Unreachable,
			"curl -k "+k.Server+"/livez; then mend the address, the route or the firewall")
	}
	switch {
	case k.DNSProblem != "":
		l.want(false, "kubelet-dns", "", Failed, k.DNSProblem, "mend the kubelet's configuration, and restart it")
	default:
		l.want(len(k.ClusterDNS) > 0, "kubelet-dns", "the kubelet gives pods the DNS server "+
			join(k.ClusterDNS), Warning,
			"no clusterDNS in the kubelet's configuration: pods use the node's DNS servers",
			"set clusterDNS in /var/lib/kubelet/config.yaml; systemctl restart kubelet")
	}
	wants6 := slices.ContainsFunc(k.ClusterDNS, isIPv6)
	l.want(f.IPv6 || !wants6, "ipv6", "the families of the cluster are enabled", Failed,
		"the cluster has IPv6, and the node disables it", "sysctl -w net.ipv6.conf.all.disable_ipv6=0")
}

// listener is a port that Wayleave needs.
type listener struct {
	proto   string
	port    uint16
	what    string
	setting string
	level   Level
}

// listenersOf are the ports of a node that Wayleave uses with these settings.
func listenersOf(cfg config.Config) (out []listener) {
	add := func(on bool, list ...listener) {
		if on {
			out = append(out, list...)
		}
	}
	add(cfg.Service.Enabled, listener{"tcp", 10256, "health of the service proxy", "service.enabled: false", Failed},
		listener{"tcp", 10249, "metrics of the service proxy", "service.enabled: false", Failed})
	add(cfg.DNS.Enabled, listener{"udp", dns.NodePort, "the cluster DNS", "dns.enabled: false", Failed},
		listener{"tcp", dns.NodePort, "the cluster DNS", "dns.enabled: false", Failed})
	add(cfg.PodNetwork.Enabled, listener{"udp", uint16(cfg.PodNetwork.VXLANPort), "VXLAN", "podnetwork.vxlanPort: PORT",
		Failed})
	for i := range 2 {
		add(cfg.Encrypts(), listener{"udp", uint16(cfg.PodNetwork.WireGuardPort + i), "WireGuard",
			"podnetwork.wireguardPort: PORT", Failed})
	}
	add(cfg.LoadBalancer.Enabled,
		listener{"udp", uint16(cfg.LoadBalancer.PeerPort), "heartbeats", "loadbalancer.peerPort: PORT", Failed},
		listener{"tcp", uint16(cfg.LoadBalancer.PeerPort), "heartbeats", "loadbalancer.peerPort: PORT", Failed})
	add(cfg.BGP.Enabled, listener{"tcp", model.BGPDefaultPort, "BGP",
		"listenPort: PORT in the BGPConfiguration default",
		Failed})
	add(cfg.Ingress.Enabled, listener{"tcp", 10080, "HTTP", "ingress.enabled: false", Failed},
		listener{"tcp", 10443, "HTTPS", "ingress.enabled: false", Failed},
		listener{"tcp", 80, "HTTP at the node's address", "ingress.enabled: false", Warning},
		listener{"tcp", 443, "HTTPS at the node's address", "ingress.enabled: false", Warning})
	return out
}

// ports finds sockets of others on ports of ours. A socket at a loopback address disturbs only listeners there.
func (l *lines) ports(f HostFacts, cfg config.Config) {
	if f.PortsError != "" {
		l.want(false, "ports", "", Unknown, "sockets of the node: "+f.PortsError, "run as root")
		return
	}
	free := true
	for _, need := range listenersOf(cfg) {
		for _, p := range f.Ports {
			if p.Proto != need.proto || p.Addr.Port() != need.port || p.Process == "wayleave" ||
				p.Addr.Addr().IsLoopback() && need.port != 10249 || isOwnVXLAN(p, need, f) {
				continue
			}
			free = false
			by := p.Process
			if by == "" {
				by = "the kernel, or a process that cannot be seen"
			}
			l.want(false, "ports", "", need.level, fmt.Sprintf("%s %s, for %s, is taken by %s", p.Proto,
				p.Addr, need.what,
				by), fmt.Sprintf("ss -lnp 'sport = :%d'; then end that program, or the setting %s", need.port,
				need.setting))
			break
		}
	}
	if free {
		l.want(true, "ports", "all ports that Wayleave uses are free", Failed, "", "")
	}
}

// isOwnVXLAN says that the kernel's socket is that of our own interface, while an agent of ours runs.
func isOwnVXLAN(p Port, need listener, f HostFacts) bool {
	return p.Process == "" && need.what == "VXLAN" && slices.ContainsFunc(f.Ports, func(p Port) bool {
		return p.Process == "wayleave"
	})
}

// others are what does the same as Wayleave, or filters its packets.
func (l *lines) others(f HostFacts, cfg config.Config) {
	if cfg.PodNetwork.Enabled {
		found, level := foreignCNI(f.CNI)
		file := filepath.Join(cmp.Or(f.Kubelet.CNI.ConfDir, "/etc/cni/net.d"), found)
		l.want(found == "", "cni", "no other CNI configuration is on the node", level,
			"another CNI configuration: "+file,
			"remove that network; mv "+file+" /root/; or the setting podnetwork.enabled: false")
	}
	l.want(len(f.Programs) == 0, "programs", "no other network program of Kubernetes runs on the node", Warning,
		"running here: "+strings.Join(f.Programs, ", "), "see docs/migrate; `wayleave check --pre` names the workloads")
	l.want(len(f.Firewalls) == 0, "firewall", "the host has no firewall of its own", Warning,
		"the host has a firewall: "+strings.Join(f.Firewalls, ", ")+". Wayleave opens it for packets of the cluster; "+
			"clients outside are yours to open", firewallFix(f.Firewalls))
}

// foreignCNI finds the configuration that the runtime would take before ours, or another one.
func foreignCNI(files []string) (string, Level) {
	for _, f := range files {
		if f != podnetwork.ConfName {
			if f < podnetwork.ConfName {
				return f, Failed
			}
			return f, Warning
		}
	}
	return "", Good
}

func firewallFix(found []string) string {
	fixes := map[string]string{
		"firewalld": "firewall-cmd --permanent --add-service=http --add-service=https && firewall-cmd --reload",
		"ufw":       "ufw allow 80,443/tcp",
		"iptables-legacy": "iptables-legacy -S; remove the rules that no program needs, and " +
			"update-alternatives --set iptables /usr/sbin/iptables-nft",
	}
	var out []string
	for _, f := range found {
		out = append(out, fixes[f])
	}
	return strings.Join(out, "\n")
}
