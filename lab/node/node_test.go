package node

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/lab/build"
	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/pki"
	"wayleave.dev/lab/place"
)

func TestHierarchies(t *testing.T) {
	const other = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n25 22 0:5 / /sys rw - sysfs sysfs rw\n"
	for name, c := range map[string]struct {
		text string
		want []hierarchy
	}{
		"version 2": {other + "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			[]hierarchy{{Path: "/sys/fs/cgroup", V2: true}}},
		"version 1, two controllers in one": {
			other + "31 25 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"32 31 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"33 31 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd\n",
			[]hierarchy{{Path: "/sys/fs/cgroup/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
				{Path: "/sys/fs/cgroup/systemd", Controllers: []string{"name=systemd"}}}},
		"both": {
			other + "32 31 0:28 /in/a/container /sys/fs/cgroup/memory rw master:9 - cgroup cgroup rw,memory\n" +
				"33 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
				"34 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
				"35 31 0:29 / /elsewhere rw - cgroup2 cgroup2 rw\n",
			[]hierarchy{{Path: "/sys/fs/cgroup/memory", Controllers: []string{"memory"}},
				{Path: "/sys/fs/cgroup/unified", V2: true}}},
		"none":     {other, nil},
		"no sense": {"x\n1 2 3 - cgroup2\n - \n", nil},
	} {
		got, err := parseMountinfo(strings.NewReader(c.text))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

func testConfig(t *testing.T, dual bool) Config {
	t.Helper()
	plan, err := fabric.NewPlan(3, dual)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	return Config{Machine: plan.Nodes[1], Index: 1, Plan: plan, Server: "https://172.30.0.2:6443",
		Registry: "172.30.0.1:5000",
		Dirs:     place.Dirs{Cache: root + "/cache", State: root + "/state", Data: root + "/data"},
		Programs: &build.Programs{Kube: "/x/kube", Containerd: "/c/containerd", Shim: "/c/shim"}}
}

func TestPrepareWritesWhatTheNodeSees(t *testing.T) {
	c := testConfig(t, true)
	ca, err := pki.NewAuthority(c.Dirs.PKI(), "ca")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := c.Prepare(ca)
	if err != nil {
		t.Fatal(err)
	}
	for _, bind := range spec.Machine.Binds {
		if info, err := os.Stat(bind.From); err != nil || !info.IsDir() {
			t.Errorf("%s for %s: %v", bind.From, bind.To, err)
		}
	}
	// The paths that programs on a node find things by.
	for inside, want := range map[string]string{
		"/var/lib/kubelet/config.yaml":                "clusterDNS: [10.96.0.10]",
		"/etc/kubernetes/kubelet.conf":                "server: https://172.30.0.2:6443",
		"/etc/kubernetes/pki/kubelet.crt":             "CERTIFICATE",
		"/etc/kubernetes/resolv.conf":                 "nameserver 172.30.0.1\nnameserver fd00:30::1\n",
		"/etc/containerd/config.toml":                 `sandbox = "` + PauseImage + `"`,
		"/etc/containerd/certs.d/_default/hosts.toml": "http://172.30.0.1:5000",
	} {
		text := inNode(t, spec.Machine, inside)
		if !strings.Contains(text, want) || strings.Contains(text, "%!") {
			t.Errorf("%s has no %q:\n%s", inside, want, text)
		}
	}
	if spec.Hostname != "node2" || spec.Machine.Files["/etc/hostname"] != "node2\n" {
		t.Errorf("host name %q, %q", spec.Hostname, spec.Machine.Files["/etc/hostname"])
	}
	kubelet := spec.Services[1].Args
	for _, want := range []string{"--config=/var/lib/kubelet/config.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf",
		"--node-ip=172.30.0.12,fd00:30::c",
		"--node-labels=topology.kubernetes.io/zone=zone-b,topology.kubernetes.io/region=lab"} {
		if !slices.Contains(kubelet, want) {
			t.Errorf("the kubelet has no %s: %q", want, kubelet)
		}
	}
}

// inNode reads a file by the path that it has in the node.
func inNode(t *testing.T, m *Machine, path string) string {
	t.Helper()
	for _, bind := range m.Binds {
		if rest, ok := strings.CutPrefix(path, bind.To+"/"); ok {
			text, err := os.ReadFile(filepath.Join(bind.From, rest))
			if err != nil {
				t.Error(err)
			}
			return string(text)
		}
	}
	t.Errorf("no bind for %s", path)
	return ""
}

func TestRunRefusesToBeAnOrdinaryProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "spec.json")
	if err := (Spec{Hostname: "node9", Machine: &Machine{}}).Save(file); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), file, nil); err == nil || !strings.Contains(err.Error(), "node9") {
		t.Errorf("got %v", err)
	}
}
