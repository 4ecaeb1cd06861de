package node

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"wayleave.dev/lab/process"
)

// scripts are the programs of a bare machine that are not built: units, and wrappers.
//
//go:embed bare
var scripts embed.FS

// bareBin is where a bare machine has its programs; the host's folder of that name is hidden.
const bareBin = "/usr/local/bin"

// bareDropIns is the folder of the kubelet's settings that are the machine's, not kubeadm's.
const bareDropIns = "/etc/kubelet.conf.d"

// PrepareBare writes the files of a machine without a cluster, as somebody has it who is about to call kubeadm:
// containerd runs, and the kubelet starts as soon as kubeadm has written its configuration. kubeadm is its path.
func (c Config) PrepareBare(kubeadm string) (Spec, error) {
	name := c.Machine.Name
	for _, dir := range []string{c.CNIBin(), c.CNIConf(), c.Kubernetes(), c.state("containerd/certs.d/_default"),
		c.data("containerd"), c.data("kubelet"), c.data("pod-logs"), c.data("bin"), c.data("etcd")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Spec{}, fmt.Errorf("node %s: %w", name, err)
		}
	}
	for file, text := range map[string]string{
		c.state("containerd/config.toml"):                 c.containerd(),
		c.state("containerd/certs.d/_default/hosts.toml"): c.registry(),
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return Spec{}, fmt.Errorf("node %s: %w", name, err)
		}
	}
	if err := c.writePrograms(kubeadm); err != nil {
		return Spec{}, fmt.Errorf("node %s: %w", name, err)
	}
	m := c.machine()
	m.Private = []string{"/root"}
	m.Binds = append(m.Binds, Bind{c.data("bin"), bareBin}, Bind{c.data("etcd"), "/var/lib/etcd"})
	m.Files["/etc/default/kubelet"] = "KUBELET_EXTRA_ARGS=--config-dir=" + bareDropIns + "\n"
	m.Files[bareDropIns+"/10-lab.conf"] = bareKubelet
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, other := range c.Plan.Nodes {
		fmt.Fprintf(&hosts, "%s %s\n", other.V4(), other.Name)
	}
	m.Files["/etc/hosts"] = hosts.String()
	all := c.services()
	services := []process.Service{all[0],
		{Name: name + "-kubelet", Args: []string{"/bin/sh", bareBin + "/kubelet-unit"}}}
	return Spec{Hostname: name, Machine: m, Services: services, Logs: c.Dirs.Logs()}, nil
}

// bareKubelet has the settings that the lab's machines need (see Config.kubelet), as a drop-in file.
const bareKubelet = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
oomScoreAdj: 0
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%",
  imagefs.inodesFree: "0%"}
volumePluginDir: /var/lib/kubelet/volume-plugins
`

// writePrograms fills the machine's folder of programs.
func (c Config) writePrograms(kubeadm string) error {
	for name, to := range map[string]string{"kubelet": c.Programs.Kube, "kubectl": c.Programs.Kubectl,
		"ctr": c.Programs.Ctr} {
		if err := os.Symlink(to, filepath.Join(c.data("bin"), name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"kubeadm", "kubelet-unit", "systemctl"} {
		text, err := scripts.ReadFile("bare/" + name)
		if err != nil {
			return err
		}
		script := strings.ReplaceAll(string(text), `"$KUBEADM"`, kubeadm)
		if err := os.WriteFile(filepath.Join(c.data("bin"), name), []byte(script), 0o755); err != nil {
			return err
		}
	}
	return nil
}
