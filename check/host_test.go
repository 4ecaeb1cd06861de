package check

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/config"
	"wayleave.dev/internal/testnet"
	kubesource "wayleave.dev/source/kubernetes"
)

// goodHost is a node on which every check is good.
func goodHost() HostFacts {
	return HostFacts{Kernel: "6.1.0-18-amd64", VXLAN: true, IPv6: true, CgroupV2: true,
		Kubelet: kubesource.Facts{Server: "https://192.0.2.1:6443", From: "/etc/kubernetes/kubelet.conf",
			ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a")}},
		Ports: []Port{{"tcp", netip.MustParseAddrPort("0.0.0.0:22"), "sshd"},
			{"tcp", netip.MustParseAddrPort("0.0.0.0:10256"), "wayleave"},
			{"tcp", netip.MustParseAddrPort("127.0.0.1:80"), "nginx"}}}
}

func TestAGoodNodeIsGood(t *testing.T) {
	r := New(Host("", goodHost(), config.Default()))
	if r.Result != Good || r.Status() != nil {
		t.Errorf("%s\n%s", r.Result, r.Text())
	}
}

// Each fault of a node is found by its own check alone, with a command that mends it.
func TestEachFaultOfANodeIsFound(t *testing.T) {
	port := func(proto, at, by string) func(*HostFacts) {
		return func(f *HostFacts) { f.Ports = append(f.Ports, Port{proto, netip.MustParseAddrPort(at), by}) }
	}
	for _, tc := range []struct {
		id    string
		level Level
		spoil func(*HostFacts)
		text  string
		fix   string
	}{
		{"kernel", Failed, func(f *HostFacts) { f.Kernel = "5.14.0-1" }, "5.14.0-1", "boot a later kernel"},
		{"kernel", Failed, func(f *HostFacts) { f.Kernel = "" }, "5.15 or later is needed", "boot"},
		{"nftables", Failed, func(f *HostFacts) { f.NFTables = "no nf_tables" }, "no nf_tables", "modprobe nf_tables"},
		{"modules", Failed, func(f *HostFacts) { f.Missing = []string{"nft_masq", "nft_nat"} }, "nft_masq",
			"modprobe -a nft_masq nft_nat"},
		{"vxlan", Warning, func(f *HostFacts) { f.VXLAN = false }, "no VXLAN", "modprobe vxlan"},
		{"sysctls", Failed, func(f *HostFacts) { f.Sysctls = "read-only file system" }, "read-only",
			"mount -o remount"},
		{"cgroup", Warning, func(f *HostFacts) { f.CgroupV2 = false }, "version 1", "unified_cgroup_hierarchy=1"},
		{"clock", Warning, func(f *HostFacts) { f.Unsynced = true }, "nothing synchronises",
			"timedatectl set-ntp true"},
		{"kubelet-kubeconfig", Warning, func(f *HostFacts) { f.Kubelet.Server = "" }, "no kubelet's kubeconfig",
			"apiServer"},
		{"kubelet-kubeconfig", Failed, func(f *HostFacts) { f.Kubelet.ServerProblem = "not YAML" },
			"not YAML", "apiServer"},
		{"api-server", Failed, func(f *HostFacts) { f.Unreachable = "connection refused" }, "connection refused",
			"curl -k https://192.0.2.1:6443/livez"},
		{"kubelet-dns", Warning, func(f *HostFacts) { f.Kubelet.ClusterDNS = nil }, "no clusterDNS", "set clusterDNS"},
		{"kubelet-dns", Failed, func(f *HostFacts) { f.Kubelet.DNSProblem = "not an address" },
			"not an address", "restart"},
		{"ipv6", Failed, func(f *HostFacts) { f.IPv6 = false }, "disables it", "sysctl -w"},
		{"ports", Failed, port("tcp", "0.0.0.0:10256", "kube-proxy"), "taken by kube-proxy", "sport = :10256"},
		{"ports", Failed, port("tcp", "127.0.0.1:10249", "kube-proxy"), "taken by kube-proxy",
			"service.enabled: false"},
		{"ports", Failed, port("udp", "192.0.2.2:10053", "x"), "the cluster DNS", "dns.enabled: false"},
		{"ports", Failed, port("udp", "[::]:7946", "dockerd"), "heartbeats", "loadbalancer.peerPort"},
		{"ports", Failed, port("tcp", "[::]:7946", "dockerd"), "taken by dockerd", "loadbalancer.peerPort"},
		{"ports", Warning, port("tcp", "0.0.0.0:80", "apache2"), "taken by apache2", "ingress.enabled: false"},
		{"ports", Warning, port("tcp", "0.0.0.0:443", "apache2"), "HTTPS", "sport = :443"},
		{"ports", Unknown, func(f *HostFacts) { f.PortsError = "permission denied" }, "permission denied", "root"},
		{"cni", Failed, func(f *HostFacts) { f.CNI = []string{"05-cilium.conflist", "10-wayleave.conflist"} },
			"05-cilium.conflist", "mv /etc/cni/net.d/05-cilium.conflist"},
		{"cni", Warning, func(f *HostFacts) { f.CNI = []string{"10-wayleave.conflist", "87-podman.conflist"} },
			"87-podman.conflist", "podnetwork.enabled: false"},
		{"programs", Warning, func(f *HostFacts) { f.Programs = []string{"kube-proxy"} }, "kube-proxy", "check --pre"},
		{"firewall", Warning, func(f *HostFacts) { f.Firewalls = []string{"firewalld", "ufw"} }, "firewalld, ufw",
			"ufw allow 80,443/tcp"},
	} {
		f := goodHost()
		tc.spoil(&f)
		r := New(Host("", f, config.Default()))
		if r.Result != tc.level {
			t.Errorf("%s (%s): result %s; want %s\n%s", tc.id, tc.text, r.Result, tc.level, r.Text())
		}
		for _, l := range r.Sections[0].Lines {
			if bad := l.Level != Good; bad != (l.ID == tc.id) && bad {
				t.Errorf("%s (%s): also %v", tc.id, tc.text, l)
			} else if bad && (!strings.Contains(l.Text, tc.text) || !strings.Contains(l.Fix, tc.fix)) {
				t.Errorf("%s: %q, fix %q; want %q, %q", tc.id, l.Text, l.Fix, tc.text, tc.fix)
			}
		}
	}
}

// Features that are off need no ports, and disturb no others.
func TestFeaturesThatAreOffNeedNothing(t *testing.T) {
	f := goodHost()
	for _, p := range listenersOf(config.Default()) {
		f.Ports = append(f.Ports, Port{p.proto, netip.AddrPortFrom(netip.IPv4Unspecified(), p.port), "other"})
	}
	f.CNI = []string{"05-other.conf"}
	if r := New(Host("", f, config.Default())); r.Result != Failed {
		t.Fatalf("with all on: %s", r.Text())
	}
	cfg := config.Default()
	cfg.Service.Enabled, cfg.DNS.Enabled, cfg.PodNetwork.Enabled, cfg.LoadBalancer.Enabled, cfg.Ingress.Enabled =
		false, false, false, false, false
	if r := New(Host("", f, cfg)); r.Result != Good {
		t.Errorf("with all off: %s", r.Text())
	}
}

// node makes the files of a node.
func node(t *testing.T, files map[string]string) Place {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Place{Root: root}
}

const status = "Name:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t7\n"

// What is read of a node's files is what is there.
func TestFactsOfANodesFiles(t *testing.T) {
	at := node(t, map[string]string{
		"proc/7/comm":                  "kubelet\n",
		"proc/7/cmdline":               "/usr/bin/kubelet\x00--config=/etc/k.yaml\x00",
		"proc/7/status":                status,
		"proc/8/comm":                  "kube-proxy\n",
		"proc/9/comm":                  "firewalld\n",
		"proc/sys/net/ipv4/ip_forward": "0\n",
		"proc/sys/net/ipv6/conf/all/disable_ipv6": "1\n",
		"etc/k.yaml":                        "clusterDNS: [10.96.0.10]\nclusterDomain: example.org\n",
		"etc/ufw/ufw.conf":                  "# ufw\nENABLED=yes\nLOGLEVEL=low\n",
		"etc/cni/net.d/10-flannel.conflist": "{}",
		"etc/cni/net.d/10-flannel.bak":      "{}",
		"sys/fs/cgroup/cgroup.controllers":  "cpu\n",
		"lib/modules/1.2.3/modules.dep":     "kernel/drivers/net/veth.ko.xz:\n",
	})
	f := ReadHost(t.Context(), at)
	if !slices.Equal(f.CNI, []string{"10-flannel.conflist"}) || !slices.Equal(f.Programs, []string{"kube-proxy"}) {
		t.Errorf("CNI %v, programs %v", f.CNI, f.Programs)
	}
	if !slices.Contains(f.Firewalls, "firewalld") || !slices.Contains(f.Firewalls, "ufw") {
		t.Errorf("firewalls %v", f.Firewalls)
	}
	if f.IPv6 || !f.CgroupV2 || f.Sysctls != "" || f.Kernel == "" {
		t.Errorf("%+v", f)
	}
	if len(f.Kubelet.ClusterDNS) != 1 || f.Kubelet.ClusterDomain != "example.org" {
		t.Errorf("kubelet: %+v", f.Kubelet)
	}
	if at.hasModule("vxlan", "1.2.3") || !at.hasModule("veth", "1.2.3") || !at.hasModule("vxlan", "none") {
		t.Error("the list of modules is misread")
	}
	empty := ReadHost(t.Context(), node(t, map[string]string{"etc/ufw/ufw.conf": "ENABLED=no\n"}))
	if empty.Sysctls == "" || empty.CgroupV2 || len(empty.CNI) != 0 || slices.Contains(empty.Firewalls, "ufw") {
		t.Errorf("of an empty node: %+v", empty)
	}
}

// Sockets of a namespace are found with the program that has them, and make the check of their port fail.
func TestPortsOfANamespaceAreFound(t *testing.T) {
	ns := testnet.New(t, "node")
	busy := func() Section {
		var f HostFacts
		ns.Must(func() error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			f = ReadHost(context.Background(), Place{Root: "/"})
			return nil
		})
		good := goodHost()
		good.Ports, good.PortsError = f.Ports, f.PortsError
		return Host("", good, config.Default())
	}
	if r := New(busy()); r.Result != Good {
		t.Fatalf("of a namespace without sockets: %s", r.Text())
	}
	l := ns.Listen("tcp4", "0.0.0.0:10256")
	c := ns.ListenPacket("udp4", "0.0.0.0:7946")
	text := New(busy()).Text()
	for _, want := range []string{"tcp 0.0.0.0:10256, for health of the service proxy, is taken by check.test",
		"udp 0.0.0.0:7946, for heartbeats, is taken by check.test"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if l.Close() != nil || c.Close() != nil {
		t.Fatal("close")
	}
	if r := New(busy()); r.Result != Good {
		t.Errorf("of closed sockets: %s", r.Text())
	}
}

func TestAnAPIServerThatIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if got := unreachable(t.Context(), "https://"+l.Addr().String()); got != "" {
		t.Errorf("of one that listens: %s", got)
	}
	l.Close()
	if got := unreachable(t.Context(), "https://"+l.Addr().String()); !strings.Contains(got, "refused") {
		t.Errorf("of one that is away: %q", got)
	}
	if got := unreachable(t.Context(), ""); got != "" {
		t.Errorf("without an address: %s", got)
	}
}

// The agent's children have their sockets under the agent's name, although they call themselves otherwise.
func TestAChildOfTheAgentIsNamed(t *testing.T) {
	at := node(t, map[string]string{"proc/7/comm": "exe\n", "proc/8/comm": "exe\n", "proc/9/comm": "sshd\n"})
	for process, file := range map[string]string{"7": "/wayleave", "8": "/wayleave (deleted)", "9": "/wayleave"} {
		if err := os.Symlink(file, at.path("proc/"+process+"/exe")); err != nil {
			t.Fatal(err)
		}
	}
	for process, want := range map[string]string{"7": "wayleave", "8": "wayleave", "9": "sshd", "10": ""} {
		if got := programOf(at.path("proc/" + process)); got != want {
			t.Errorf("process %s is %q; want %q", process, got, want)
		}
	}
}
