//go:build linux

package check

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/listeners"
	"wayleave.dev/kernel"
	kubesource "wayleave.dev/source/kubernetes"
)

// HostFacts are what a node tells about itself. An empty field says that all is well or unknown, as its comment says.
type HostFacts struct {
	// Kernel is the release, NFTables why nf_tables cannot be used, and Missing the modules that are lacking.
	Kernel   string   `json:"kernel"`
	NFTables string   `json:"nftables,omitempty"`
	Missing  []string `json:"missing,omitempty"`
	VXLAN    bool     `json:"vxlan"`
	// IPv6 says that the kernel has IPv6 and does not disable it.
	IPv6 bool `json:"ipv6"`
	// Sysctls says why sysctls of the network cannot be written.
	Sysctls string `json:"sysctls,omitempty"`
	// CgroupV2 says that cgroups are those of version 2.
	CgroupV2 bool `json:"cgroupV2"`
	// Ports are sockets that listen; PortsError says why they are not known.
	Ports      []Port `json:"ports"`
	PortsError string `json:"portsError,omitempty"`
	// Kubelet is what the kubelet was told.
	Kubelet kubesource.Facts `json:"kubelet"`
	// Unreachable says why the API server cannot be reached, empty also if its address is unknown.
	Unreachable string `json:"unreachable,omitempty"`
	// CNI are the configurations of the container runtime, in its order.
	CNI []string `json:"cni"`
	// Programs are foreign network programs that run.
	Programs []string `json:"programs,omitempty"`
	// Firewalls are the programs that filter packets beside Wayleave.
	Firewalls []string `json:"firewalls,omitempty"`
	// Unsynced says that the kernel's clock is not synchronised.
	Unsynced bool `json:"unsynced"`
}

// Port is a socket that listens.
type Port struct {
	// Proto is "tcp" or "udp".
	Proto string         `json:"proto"`
	Addr  netip.AddrPort `json:"addr"`
	// Process is the name of the program; empty for the kernel, or if it cannot be seen.
	Process string `json:"process,omitempty"`
}

// Place is where the files of a node are. The network namespace is the caller's.
type Place struct {
	// Root is "/" on the node, or where that is mounted.
	Root string
	// Net is the namespace's folder of /proc, "/proc/thread-self/net".
	Net string
}

// ReadHost reads the facts of a node. It needs root.
func ReadHost(ctx context.Context, at Place) HostFacts {
	f := HostFacts{Programs: at.programs(), Firewalls: at.firewalls()}
	found, err := kernel.Detect(ctx)
	f.Kernel, f.Missing = found.Release, found.Missing
	if err != nil {
		f.NFTables = err.Error()
	}
	f.IPv6 = found.IPv6 && at.text("proc/sys/net/ipv6/conf/all/disable_ipv6") != "1"
	f.VXLAN = at.hasModule("vxlan", found.Release)
	f.Sysctls = at.sysctls()
	_, err = os.Stat(at.path("sys/fs/cgroup/cgroup.controllers"))
	f.CgroupV2 = err == nil
	if f.Ports, err = at.ports(); err != nil {
		f.PortsError = err.Error()
	}
	f.Kubelet = kubesource.Host{Root: at.Root}.Discover()
	f.CNI = at.cni(cmp.Or(f.Kubelet.CNI.ConfDir, "/etc/cni/net.d"))
	f.Unreachable = unreachable(ctx, f.Kubelet.Server)
	f.Unsynced = unsynced()
	return f
}

func (p Place) path(name string) string { return filepath.Join(p.Root, name) }

// maxText bounds a file that is read as a text.
const maxText = 1 << 20

func (p Place) text(name string) string {
	raw, err := os.ReadFile(p.path(name))
	if err != nil || len(raw) > maxText {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// hasModule says that a module is built in, loaded, or can be loaded. Without any list of modules it says so, too: the
// kernel cannot be asked without making an interface.
func (p Place) hasModule(name, release string) bool {
	if _, err := os.Stat(p.path("sys/module/" + name)); err == nil {
		return true
	}
	known := false
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		raw, err := os.ReadFile(p.path("lib/modules/" + release + "/" + list))
		if err != nil {
			continue
		}
		known = true
		if bytes.Contains(raw, []byte("/"+name+".ko")) {
			return true
		}
	}
	return !known
}

// sysctls says why they cannot be written; nothing is written.
func (p Place) sysctls() string {
	f, err := os.OpenFile(p.path("proc/sys/net/ipv4/ip_forward"), os.O_WRONLY, 0)
	if err != nil {
		return err.Error()
	}
	if err := f.Close(); err != nil {
		return err.Error()
	}
	return ""
}

func (p Place) ports() (out []Port, err error) {
	all, err := listeners.Read(cmp.Or(p.Net, "/proc/thread-self/net"))
	if err != nil {
		return nil, err
	}
	programs := p.sockets()
	for _, s := range all {
		if s.Kind == "tcp" || s.Kind == "udp" {
			out = append(out, Port{s.Kind, s.Addr, programs[s.Inode]})
		}
	}
	return out, nil
}

// sockets are the names of programs by the inodes of their sockets.
func (p Place) sockets() map[string]string {
	out := map[string]string{}
	links, err := filepath.Glob(p.path("proc/[0-9]*/fd/*"))
	if err != nil {
		return out
	}
	names := map[string]string{}
	for _, l := range links {
		to, err := os.Readlink(l)
		inode, isSocket := strings.CutPrefix(to, "socket:[")
		if err != nil || !isSocket {
			continue
		}
		process := filepath.Dir(filepath.Dir(l))
		if _, ok := names[process]; !ok {
			names[process] = programOf(process)
		}
		out[strings.TrimSuffix(inode, "]")] = names[process]
	}
	return out
}

// programOf names the program of a process, by its folder in /proc. A child that was started as /proc/self/exe, as the
// agent's are, calls itself "exe": its file has the name.
func programOf(process string) string {
	raw, _ := os.ReadFile(filepath.Join(process, "comm")) // it may have ended
	name := strings.TrimSpace(string(raw))
	if file, err := os.Readlink(filepath.Join(process, "exe")); err == nil && name == "exe" {
		name = strings.TrimSuffix(filepath.Base(file), " (deleted)")
	}
	return name
}

// cni lists the files in a folder that the container runtime takes as configurations, in its order. It uses the first.
func (p Place) cni(dir string) (out []string) {
	entries, err := os.ReadDir(p.path(dir))
	if err != nil {
		return []string{} // there is none yet
	}
	out = []string{}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out
}

// programs lists foreign network programs that run on the node, in containers too.
func (p Place) programs() (out []string) {
	for _, name := range p.comms() {
		if isForeign(name) {
			out = append(out, name)
		}
	}
	return out
}

// comms are the names of all processes, each once.
func (p Place) comms() (out []string) {
	files, err := filepath.Glob(p.path("proc/[0-9]*/comm"))
	if err != nil {
		return nil
	}
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil {
			out = append(out, strings.TrimSpace(string(raw)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p Place) firewalls() (out []string) {
	if slices.Contains(p.comms(), "firewalld") {
		out = append(out, "firewalld")
	}
	if strings.Contains("\n"+p.text("etc/ufw/ufw.conf")+"\n", "\nENABLED=yes\n") {
		out = append(out, "ufw")
	}
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		raw, err := os.ReadFile(filepath.Join(cmp.Or(p.Net, "/proc/thread-self/net"), file))
		if err == nil && len(bytes.TrimSpace(raw)) > 0 && !slices.Contains(out, "iptables-legacy") {
			out = append(out, "iptables-legacy")
		}
	}
	return out
}

func unreachable(ctx context.Context, server string) string {
	if server == "" {
		return ""
	}
	u, err := url.Parse(server)
	if err != nil {
		return err.Error()
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		return err.Error()
	}
	if err := conn.Close(); err != nil {
		return fmt.Sprintf("close: %v", err)
	}
	return ""
}

// unsynced asks the kernel whether something keeps its clock right (adjtimex(2), TIME_ERROR).
func unsynced() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	const timeError = 5
	return err == nil && state == timeError
}
