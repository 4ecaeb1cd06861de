// Package node makes a cluster's machine out of namespaces: containerd and kubelet, and below them the pods, with
// separate network, mounts, processes, host name and cgroups. The host does not see what a node changes in its file
// system or its cgroups, and the changes end with the node.
package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"wayleave.dev/lab/build"
	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/pki"
	"wayleave.dev/lab/place"
	"wayleave.dev/lab/process"
)

// PauseImage is the image of the container that holds a pod's namespaces.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// zones are assigned to the nodes in turn.
var zones = []string{"zone-a", "zone-b", "zone-c"}

const region = "lab"

// Config describes a node.
type Config struct {
	Machine  fabric.Machine
	Index    int // from 0
	Plan     fabric.Plan
	Dirs     place.Dirs
	Programs *build.Programs
	Server   string // the API server's URL
	// Registry is where the container runtime looks for missing images, instead of the registry in their names.
	Registry string
	// Extra services are started last.
	Extra []process.Service
}

// Spec is the input of the first process of a node, or of the control plane.
type Spec struct {
	Hostname string            `json:"hostname"`
	Machine  *Machine          `json:"machine,omitempty"` // nil: namespaces only
	Services []process.Service `json:"services"`
	Logs     string            `json:"logs"`
}

// Save writes the spec for Run.
func (s Spec) Save(file string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("node %s: %w", s.Hostname, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("node %s: %w", s.Hostname, err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("node %s: %w", s.Hostname, err)
	}
	return nil
}

// Folders of a node, in the lab's data and state.
func (c Config) data(name string) string  { return filepath.Join(c.Dirs.NodeData(c.Machine.Name), name) }
func (c Config) state(name string) string { return filepath.Join(c.Dirs.Node(c.Machine.Name), name) }

// CNIBin is the folder that the node sees as /opt/cni/bin.
func (c Config) CNIBin() string { return c.data("cni-bin") }

// CNIConf is the folder that the node sees as /etc/cni/net.d.
func (c Config) CNIConf() string { return c.state("cni") }

// Kubernetes is the folder that the node sees as /etc/kubernetes.
func (c Config) Kubernetes() string { return c.state("kubernetes") }

// Prepare writes the files of the node and returns the input of its first process.
func (c Config) Prepare(ca *pki.Authority) (Spec, error) {
	name := c.Machine.Name
	for _, dir := range []string{c.CNIBin(), c.CNIConf(), c.Kubernetes(), c.state("containerd/certs.d/_default"),
		c.data("containerd"), c.data("kubelet"), c.data("pod-logs")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Spec{}, fmt.Errorf("node %s: %w", name, err)
		}
	}
	if err := c.writeKeys(ca); err != nil {
		return Spec{}, fmt.Errorf("node %s: %w", name, err)
	}
	for file, text := range map[string]string{
		c.data("kubelet/config.yaml"):                     c.kubelet(),
		c.state("containerd/config.toml"):                 c.containerd(),
		c.state("containerd/certs.d/_default/hosts.toml"): c.registry(),
		filepath.Join(c.Kubernetes(), "resolv.conf"):      c.resolver(),
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return Spec{}, fmt.Errorf("node %s: %w", name, err)
		}
	}
	return Spec{Hostname: name, Machine: c.machine(), Services: c.services(), Logs: c.Dirs.Logs()}, nil
}

// writeKeys creates the kubelet's identity, like "kubeadm join".
func (c Config) writeKeys(ca *pki.Authority) error {
	name := c.Machine.Name
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for _, p := range c.Machine.Addresses {
		addresses = append(addresses, p.Addr())
	}
	for _, r := range []pki.Request{
		{Name: name, CommonName: "system:node:" + name, Organizations: []string{"system:nodes"}},
		{Name: name + "-serving", CommonName: "system:node:" + name, Organizations: []string{"system:nodes"},
			DNS: []string{name}, Addresses: addresses},
	} {
		if err := ca.Issue(r); err != nil {
			return err
		}
	}
	dir := filepath.Join(c.Kubernetes(), "pki")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for from, to := range map[string]string{"ca.crt": "ca.crt", name + "-serving.crt": "kubelet.crt",
		name + "-serving.key": "kubelet.key"} {
		data, err := os.ReadFile(filepath.Join(ca.Dir, from))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, to), data, 0o600); err != nil {
			return err
		}
	}
	return ca.Kubeconfig(filepath.Join(c.Kubernetes(), "kubelet.conf"), c.Server, name)
}

func (c Config) services() []process.Service {
	var addresses []string
	for _, p := range c.Machine.Addresses {
		addresses = append(addresses, p.Addr().String())
	}
	name := c.Machine.Name
	path := "PATH=" + filepath.Dir(c.Programs.Shim) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	return append([]process.Service{
		{Name: name + "-containerd", Args: []string{c.Programs.Containerd, "--config", "/etc/containerd/config.toml"},
			Env: []string{path}},
		{Name: name + "-kubelet", Program: c.Programs.Kube, Args: []string{"/usr/bin/kubelet",
			"--config=/var/lib/kubelet/config.yaml",
			"--kubeconfig=/etc/kubernetes/kubelet.conf",
			"--hostname-override=" + name,
			"--node-ip=" + strings.Join(addresses, ","),
			"--node-labels=topology.kubernetes.io/zone=" + zones[c.Index%len(zones)] +
				",topology.kubernetes.io/region=" + region,
		}},
	}, c.Extra...)
}

// kubelet renders the kubelet's configuration. Cgroups per pod, limits for the node and eviction are disabled: the
// cgroups of the lab's machines differ in features, and nodes share one disk.
func (c Config) kubelet() string {
	address := "0.0.0.0"
	if len(c.Machine.Addresses) > 1 {
		address = "'::'"
	}
	return `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: ` + address + `
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/pki/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/pki/kubelet.key
clusterDNS: [` + fabric.ClusterDNS.String() + `]
clusterDomain: cluster.local
resolvConf: /etc/kubernetes/resolv.conf
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volume-plugins
staticPodPath: ""
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
oomScoreAdj: 0
failSwapOn: false
makeIPTablesUtilChains: false
rotateCertificates: false
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 24h
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%",
  imagefs.inodesFree: "0%"}
serializeImagePulls: false
registryPullQPS: 0
kubeAPIQPS: 200
kubeAPIBurst: 400
eventRecordQPS: 0
`
}

// containerd renders the runtime's configuration. Without CAP_SYS_RESOURCE runc cannot lower an oom_score_adj; with
// restrict_oom_score_adj, containerd requests no lower value than its own, which is harmless otherwise.
func (c Config) containerd() string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = %q
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %q
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "/etc/containerd/certs.d"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
    use_internal_loopback = true
`, "overlayfs", PauseImage)
}

func (c Config) registry() string {
	return fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+c.Registry)
}

// resolver is the file from which pods with dnsPolicy Default, and forwarding DNS servers, get their upstream server.
func (c Config) resolver() string {
	var text strings.Builder
	for _, gateway := range c.Plan.Gateways {
		fmt.Fprintf(&text, "nameserver %s\n", gateway.Addr())
	}
	return text.String()
}

// machine describes the node's file system.
func (c Config) machine() *Machine {
	return &Machine{
		Cgroup: c.Machine.Name,
		Tmpfs:  c.state("tmpfs"),
		Keep:   []string{c.Dirs.Cache, c.Dirs.Logs(), filepath.Join(c.Dirs.State, "bin")},
		Binds: []Bind{
			{c.CNIBin(), "/opt/cni/bin"},
			{c.CNIConf(), "/etc/cni/net.d"},
			{c.Kubernetes(), "/etc/kubernetes"},
			{c.state("containerd"), "/etc/containerd"},
			{c.data("kubelet"), "/var/lib/kubelet"},
			{c.data("containerd"), "/var/lib/containerd"},
			{c.data("pod-logs"), "/var/log/pods"},
		},
		Files: map[string]string{
			"/etc/resolv.conf": c.resolver(),
			"/etc/hostname":    c.Machine.Name + "\n",
			"/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n" + c.Machine.V4().String() + " " +
				c.Machine.Name + "\n",
			"/etc/machine-id": fmt.Sprintf("%032x\n", 0x3a1e0000+c.Index+1),
		},
	}
}
