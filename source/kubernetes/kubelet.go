package kubernetes

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"wayleave.dev/internal/apiaddr"
)

// Host finds the kubelet's configuration on this node: below the root of the node's file system, or in a file that
// Discover has written.
type Host struct {
	// Root is the mount of the node's "/", for example "/host".
	Root string
	// Facts is a file of type Facts. If set, it is read instead.
	Facts string
}

// The places of the kubelet's files in distributions, for nodes whose kubelet is not found among the processes:
// kubeadm and kind, k3s, RKE2, k0s, MicroK8s, Talos.
func kubeconfigs() []string {
	return []string{
		"/etc/kubernetes/kubelet.conf",
		"/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
		"/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
		"/var/lib/k0s/kubelet.conf",
		"/var/snap/microk8s/current/credentials/kubelet.config",
		"/etc/kubernetes/kubeconfig-kubelet",
	}
}

func kubeletConfigs() []string {
	return []string{"/var/lib/kubelet/config.yaml", "/var/lib/k0s/kubelet-config.yaml", "/etc/kubernetes/kubelet.yaml"}
}

func kubeletConfigDirs() []string {
	return []string{k3sData + k3sDropIns, "/var/lib/rancher/rke2" + k3sDropIns}
}

const (
	k3sData    = "/var/lib/rancher/k3s"
	k3sDropIns = "/agent/etc/kubelet.conf.d"
)

// kubeletFlags returns the arguments of the running kubelet, nil if none is found. MicroK8s' kubelite reads them from a
// file. The kubelet of k3s has no command line: its files are in k3s' data folder.
func (h Host) kubeletFlags() []string {
	for _, name := range []string{"kubelet", "kubelite", "k3s"} {
		found := h.processes(func(args []string) bool {
			return filepath.Base(args[0]) == name || name == "kubelet" && len(args) > 1 && args[1] == name
		})
		if len(found) == 0 {
			continue
		}
		switch args := found[0]; {
		case name == "kubelite":
			return h.argumentFile(flag(args, "kubelet-args-file"))
		case name == "k3s":
			return h.k3sFlags(args)
		case filepath.Base(args[0]) == name:
			return args[1:]
		default: // a binary with several commands: "hyperkube kubelet"
			return args[2:]
		}
	}
	return nil
}

// argumentFile reads a file of MicroK8s with one argument a line, in which variables of the snap are expanded.
func (h Host) argumentFile(file string) []string {
	raw, err := h.read(file)
	if err != nil {
		return nil
	}
	data := filepath.Dir(filepath.Dir(file)) // /var/snap/microk8s/REVISION/args/kubelet
	vars := strings.NewReplacer("${SNAP_DATA}", data, "$SNAP_DATA", data,
		"${SNAP_COMMON}", filepath.Join(filepath.Dir(data), "common"),
		"$SNAP_COMMON", filepath.Join(filepath.Dir(data), "common"), `"`, "")
	var out []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "-") {
			out = append(out, vars.Replace(line))
		}
	}
	return out
}

// k3sFlags are the arguments that k3s gives to the kubelet inside of it, as far as they are used here.
func (h Host) k3sFlags(args []string) []string {
	data := k3sData
	files := append([]string{"/etc/rancher/k3s/config.yaml"}, h.list("/etc/rancher/k3s/config.yaml.d/*.yaml")...)
	for _, file := range files {
		var c struct {
			DataDir string `json:"data-dir"`
		}
		if raw, err := h.read(file); err == nil && yaml.Unmarshal(raw, &c) == nil && c.DataDir != "" {
			data = c.DataDir
		}
	}
	if d := flag(args, "data-dir", "d"); d != "" {
		data = d
	}
	return []string{"--kubeconfig=" + data + "/agent/kubelet.kubeconfig", "--config-dir=" + data + k3sDropIns,
		"--container-runtime-endpoint=/run/k3s/containerd/containerd.sock"}
}

// APIServer returns the URL of the API server that the node's kubelet uses, and the file that contains it. The error
// is fs.ErrNotExist if no file was found.
func (h Host) APIServer() (server, from string, err error) {
	if h.Facts != "" {
		return h.serverOfFacts()
	}
	candidates := kubeconfigs()
	if f := flag(h.kubeletFlags(), "kubeconfig"); f != "" {
		candidates = append([]string{f}, candidates...)
	}
	for _, file := range candidates {
		raw, err := h.read(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			server, err = currentServer(raw)
		}
		if err != nil {
			return "", "", fmt.Errorf("kubelet's kubeconfig %s: %w; it is not read if the setting apiServer has the "+
				"API server's URL", file, err)
		}
		return server, file, nil
	}
	return "", "", fmt.Errorf("kubelet's kubeconfig in %s: %w", strings.Join(candidates, ", "), fs.ErrNotExist)
}

// currentServer is the server of a kubeconfig's current context.
func currentServer(raw []byte) (string, error) {
	c, err := clientcmd.Load(raw)
	if err != nil {
		return "", err
	}
	ctx, ok := c.Contexts[c.CurrentContext]
	if !ok {
		return "", fmt.Errorf("current-context: %q is not among contexts", c.CurrentContext)
	}
	cluster, ok := c.Clusters[ctx.Cluster]
	if !ok || cluster.Server == "" {
		return "", fmt.Errorf("clusters: %q has no server", ctx.Cluster)
	}
	return cluster.Server, nil
}

// kubeletConfiguration is the part of a KubeletConfiguration that is used.
type kubeletConfiguration struct {
	ClusterDNS               []string `json:"clusterDNS"`
	ClusterDomain            string   `json:"clusterDomain"`
	ContainerRuntimeEndpoint string   `json:"containerRuntimeEndpoint"`
}

// kubeletConfig reads the kubelet's configuration as the kubelet does: the file, then the files *.conf of the folder
// in order of names, then flags. Without a running kubelet, the known places are read.
func (h Host) kubeletConfig(flags []string) (c kubeletConfiguration, err error) {
	files, dirs := kubeletConfigs(), kubeletConfigDirs()
	file, dir := flag(flags, "config"), flag(flags, "config-dir")
	if file != "" || dir != "" {
		files, dirs = nil, nil
	}
	if file != "" {
		files = []string{file}
	}
	if dir != "" {
		dirs = []string{dir}
	}
	for _, d := range dirs {
		files = append(files, h.list(filepath.Join(d, "*.conf"))...)
	}
	for _, name := range files {
		raw, err := h.read(name)
		if errors.Is(err, fs.ErrNotExist) && name != file {
			continue
		}
		if err == nil {
			err = yaml.Unmarshal(raw, &c)
		}
		if err != nil {
			return c, fmt.Errorf("kubelet's configuration %s: %w; it is not read if the settings clusterDNS and "+
				"clusterDomain are set", name, err)
		}
	}
	if list := flag(flags, "cluster-dns"); list != "" {
		c.ClusterDNS = strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
	}
	for at, v := range map[*string]string{&c.ClusterDomain: flag(flags, "cluster-domain"),
		&c.ContainerRuntimeEndpoint: flag(flags, "container-runtime-endpoint", "containerd")} {
		if v != "" {
			*at = v
		}
	}
	return c, nil
}

// ClusterDNS returns the addresses and the domain that the kubelet gives to pods, from its command line and
// configuration; empty if they are not set.
func (h Host) ClusterDNS() (addrs []netip.Addr, domain string, err error) {
	if h.Facts != "" {
		return h.dnsOfFacts()
	}
	c, err := h.kubeletConfig(h.kubeletFlags())
	if err != nil {
		return nil, "", err
	}
	for _, s := range c.ClusterDNS {
		a, err := apiaddr.ParseAddr(s)
		if err != nil {
			return nil, "", fmt.Errorf("kubelet's configuration: clusterDNS: %w; it is not read if the settings "+
				"clusterDNS and clusterDomain are set", err)
		}
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, c.ClusterDomain, nil
}
