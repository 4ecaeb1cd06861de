package agent

import (
	"path/filepath"

	"wayleave.dev/config"
)

// The places that the manifest mounts, see deploy/manifest.tmpl.
const (
	// ConfigDir is the mounted ConfigMap.
	ConfigDir = "/etc/wayleave"
	// RunDir is the node's, and Wayleave's own.
	RunDir = "/run/wayleave"
	// hostSysctl is the node's /proc/sys/net.
	hostSysctl = "/host-sysctl"
	// hostCgroup is the node's /sys/fs/cgroup: a container has its own.
	hostCgroup = "/host-cgroup"
	// NodeFacts is what the container discover found on the node.
	NodeFacts = "/node/facts.json"
	// XtablesLock is the file that programs of iptables-legacy lock on the node.
	XtablesLock = "/run/xtables.lock"

	// Socket serves the owner's status on the node.
	Socket = RunDir + "/" + statusSocket
	// HealthSocket serves the health of this pod's agent, owner or standby.
	HealthSocket = "/pod/agent.sock"
	// WriterSocket serves the health and the status of this pod's writer.
	WriterSocket = "/pod/writer.sock"
)

const (
	// ownerLock is locked, in the folder Dirs.Run, by the agent that owns the node.
	ownerLock = "owner.lock"
	// statusSocket serves, in the folder Dirs.Run, the owner's status on the node.
	statusSocket = "agent.sock"
)

// Dirs are folders of a node.
type Dirs struct {
	// State and Run are Wayleave's own, of which uninstall keeps nothing.
	State, Run string
	// Sysctl is the node's /proc/sys/net.
	Sysctl string
	// Cgroup is where the node has its cgroups, and BPF its BPF file system.
	Cgroup, BPF string
	// CNIBin and CNIConf are where the container runtime looks for plugins.
	CNIBin, CNIConf string
}

// hostDirs are the folders of a node as the node itself has them.
func hostDirs() Dirs {
	return Dirs{State: "/var/lib/wayleave", Run: RunDir, Sysctl: "/proc/sys/net", Cgroup: "/sys/fs/cgroup",
		BPF: "/sys/fs/bpf", CNIBin: config.CNIBinDir, CNIConf: config.CNIConfDir}
}

// apiServersFile remembers where API servers are.
func (d Dirs) apiServersFile() string { return filepath.Join(d.State, "api-servers") }
