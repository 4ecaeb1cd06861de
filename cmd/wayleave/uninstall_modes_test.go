package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	kernelipvs "wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/sysctl"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
)

// bareNode is a node without Wayleave on it.
type bareNode struct {
	t   *testing.T
	ns  *testnet.NS
	dir string
	// cgroup and bpf are for the mode ebpf.
	cgroup, bpf string
}

func newBareNode(t *testing.T) *bareNode {
	n := &bareNode{t, testnet.New(t, "node"), t.TempDir(), testnet.Cgroup(t), testnet.BPFFS(t)}
	far := testnet.New(t, "far")
	testnet.Veth(n.ns, "eth0", far, "eth0")
	n.ns.Addr("eth0", "172.30.0.11/24")
	n.ns.Addr("eth0", "fd00:30::11/64")
	n.ns.Route("0.0.0.0/0", "172.30.0.1")
	testnet.Eventually(t, 10*time.Second, func() error { // the kernel adds it by itself, a moment after the link is up
		if out := n.ns.Run("ip", "-6", "addr", "show", "dev", "eth0", "-tentative"); !strings.Contains(out,
			"inet6 fe80:") {
			return fmt.Errorf("eth0 has no link-local address yet: %s", out)
		}
		return nil
	})
	for _, d := range []string{"bin", "net.d"} {
		if err := os.Mkdir(filepath.Join(n.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// open is what `wayleave uninstall` has of the node.
func (n *bareNode) open() *agent.Host {
	n.t.Helper()
	fd, err := os.Open(n.ns.Path())
	if err != nil {
		n.t.Fatal(err)
	}
	state, run := filepath.Join(n.dir, "state"), filepath.Join(n.dir, "run")
	s, err := agent.NewHost(fd, agent.Dirs{State: state, Run: run, Sysctl: "/proc/sys/net", Cgroup: n.cgroup,
		BPF:    n.bpf,
		CNIBin: filepath.Join(n.dir, "bin"), CNIConf: filepath.Join(n.dir, "net.d")})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = s.Close() })
	return s
}

// install puts on the node what an agent puts there in a mode.
func (n *bareNode) install(kind string) error {
	ctx, s := n.t.Context(), n.open()
	for _, d := range []string{s.State, s.Run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	track, err := conntrack.NewKernel(s.FD())
	if err != nil {
		return err
	}
	links, err := link.NewKernel(s.FD(), filepath.Join(s.State, "dns-addresses"))
	if err != nil {
		return err
	}
	planes := dataplane.Planes{NSFD: s.FD(), NFT: s.NFT, Track: track, Memory: s.State + "/iptables",
		Cgroup: s.Cgroup, BPF: s.BPF, Scheduler: config.Default().IPVS.Scheduler, Drain: config.Default().IPVS.Drain}
	name, flavour, _ := strings.Cut(kind, "-")
	planes.Flavour = flavour
	plane, err := dataplane.ByName(name)
	if err != nil {
		return err
	}
	mode, err := plane.Make(ctx, planes)
	if err != nil {
		return err
	}
	local := service.NodeFacts{NodeIPs: []netip.Addr{netip.MustParseAddr("172.30.0.11"),
		netip.MustParseAddr("fd00:30::11")},
		PodCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		OwnPodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd00:30::/64"),
			netip.MustParsePrefix("127.0.0.0/8")}}
	mode.SetNodeFacts(local)
	set := sysctl.Set{Root: "/proc/sys/net", State: s.State + "/sysctl"}
	tracking := service.Tracking{Established: 23 * time.Hour, CloseWait: time.Hour, UDP: 31 * time.Second,
		Liberal: true}
	if err := errors.Join(dataplane.EnsureSysctls(set, mode, local), tracking.Set(set, 1)); err != nil {
		return err
	}
	if err := mode.Sync(ctx, n.plans()); err != nil {
		return err
	}
	p := &dns.Placement{Net: links, Bypass: dns.NFTables{Conn: s.NFT}, Feed: &dns.Feed{},
		Forwarding: func([]netip.Addr) schema.Forwarding {
			return schema.Forwarding{}
		}}
	if err := p.Sync(ctx, map[model.Name]dns.Place{
		{}: {VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}}); err != nil {
		return err
	}
	if err := links.SetRoute(ctx, link.Route{Dst: netip.MustParsePrefix("10.244.7.0/24")}); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, "net.d", podnetwork.ConfName), nil, 0o644)
}

// plans are those of a Service that uses what a Service can have.
func (n *bareNode) plans() map[model.Name]service.Plan {
	store, err := model.NewStore()
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = store.Close() })
	name := model.Name{Namespace: "default", Name: "web"}
	err = store.Write(func(tx *model.Writer) {
		tx.PutService(&model.Service{Name: name, Type: model.LoadBalancer, Affinity: time.Hour, ExternalLocal: true,
			ClusterIPs:      []netip.Addr{netip.MustParseAddr("10.96.0.50"), netip.MustParseAddr("fd00:96::50")},
			ExternalIPs:     []netip.Addr{netip.MustParseAddr("203.0.113.5")},
			LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("203.0.113.6")},
			SourceRanges:    []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
			Ports: []model.ServicePort{{Name: "tcp", Protocol: model.TCP, Port: 80, NodePort: 30080},
				{Name: "udp", Protocol: model.UDP, Port: 80, NodePort: 40080}}})
		for i, a := range []string{"10.244.1.2", "fd00:244:0:1::2"} {
			tx.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "default",
				Name: fmt.Sprint("web-", i)}, Service: "web",
				Ports: []model.EndpointPort{{Name: "tcp", Protocol: model.TCP, Port: 8080},
					{Name: "udp", Protocol: model.UDP, Port: 8080}},
				Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr(a), Node: "node1", Ready: true, Serving: true}}})
		}
	})
	if err != nil {
		n.t.Fatal(err)
	}
	plan, ok, problems := service.Make(store.Snapshot(), name, "node1")
	if !ok || len(problems) > 0 {
		n.t.Fatal("no plan", problems)
	}
	return map[model.Name]service.Plan{name: plan}
}

var (
	counters = regexp.MustCompile(`\[\d+:\d+\]|counter packets \d+ bytes \d+`)
	comments = regexp.MustCompile(`(?m)^#.*\n`) // with the time of day
)

// everything is all that there is on the node, as text.
func (n *bareNode) everything() string {
	n.t.Helper()
	var b strings.Builder
	for _, c := range []string{"nft list ruleset", "iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save",
		"ip6tables-legacy-save",
		"ip -o -d link", "ip -o addr", "ip rule", "ip -6 rule", "ip route show table all",
		"ip -6 route show table all"} {
		words := strings.Fields(c)
		out := n.ns.Run(words[0], words[1:]...)
		fmt.Fprintf(&b, "== %s\n%s", c, comments.ReplaceAllString(counters.ReplaceAllString(out, ""), ""))
	}
	if _, err := os.Stat("/proc/net/ip_vs"); err == nil {
		fmt.Fprintf(&b, "== ipvsadm\n%s", n.ns.Run("ipvsadm", "-Sn"))
	}
	n.ns.Must(func() error {
		sets, err := netlink.IpsetListAll()
		for _, s := range sets {
			fmt.Fprintf(&b, "set %s\n", s.SetName)
		}
		return err
	})
	b.WriteString("== sysctls\n")
	n.ns.Must(func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			// Counters and seeds change by themselves.
			if err != nil || d.IsDir() || slices.Contains([]string{"nf_conntrack_count", "stable_secret",
				"flush"}, d.Name()) {
				return err
			}
			if raw, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&b, "%s %s\n", path, strings.TrimSpace(string(raw)))
			}
			return nil
		})
	})
	b.WriteString("== files\n")
	for _, dir := range []string{n.dir, n.bpf + "/."} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			fmt.Fprintln(&b, path)
			return err
		})
		if err != nil {
			n.t.Fatal(err)
		}
	}
	return b.String()
}

// firstDifference is for people.
func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, l := range y {
		if !slices.Contains(x, l) {
			return "new: " + l
		}
	}
	for _, l := range x {
		if !slices.Contains(y, l) {
			return "gone: " + l
		}
	}
	return "another order"
}

// others are rules that were there before: Docker's and the kubelet's.
func (n *bareNode) others(flavour string) {
	for _, f := range []string{"iptables", "ip6tables"} {
		for _, c := range []string{"-t nat -N DOCKER", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
			"-N KUBE-FIREWALL", "-A OUTPUT -j KUBE-FIREWALL", "-t mangle -N KUBE-IPTABLES-HINT",
			"-t mangle -N KUBE-KUBELET-CANARY"} {
			n.ns.Run(f+"-"+flavour, strings.Fields(c)...)
		}
	}
	n.ns.Run("nft", "add table inet firewalld; add chain inet firewalld input { type filter hook input priority 10; "+
		"}; add rule inet firewalld input tcp dport 22 accept")
}

// What is on a node before installing and after uninstalling is equal, in every mode:
// rules of nftables and of both flavours of iptables, sets, virtual servers, links,
// addresses, routes, rules of routing, sysctls and files; and --verify says so.
func TestUninstallLeavesTheNodeAsItWas(t *testing.T) {
	uninstallRows(t, "nftables", "iptables-nft", "iptables-legacy", "ebpf",
		"nftables iptables-nft iptables-legacy ebpf")
}

// The same of the mode ipvs, for which make test-vm has the kernel.
func TestUninstallOfIPVS(t *testing.T) {
	if _, err := kernelipvs.NewKernel(testnet.New(t, "probe").FD()); err != nil {
		t.Skipf("this kernel has no ip_vs (make test-vm has): %v", err)
	}
	uninstallRows(t, "ipvs", "ipvs iptables-nft nftables")
}

func uninstallRows(t *testing.T, rows ...string) {
	testnet.Need(t, "iptables-nft")
	for _, row := range rows {
		for _, with := range []string{"", "nft", "legacy"} {
			name := row
			if with != "" {
				name += " beside rules of iptables-" + with
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				n := newBareNode(t)
				// The kernel's tables of iptables-legacy come with the first look at them,
				// whoever looks, and cannot be taken away.
				for _, f := range []string{"iptables-legacy", "ip6tables-legacy"} {
					for _, table := range []string{"nat", "filter", "mangle"} {
						n.ns.Run(f, "-t", table, "-S")
					}
				}
				if with != "" {
					n.others(with)
				}
				before := n.everything()
				n.ns.Must(func() error { return n.open().Verify(t.Context(), features.All()) })
				for kind := range strings.FieldsSeq(row) {
					n.ns.Must(func() error { return n.install(kind) })
				}
				n.ns.Must(func() error {
					err := n.open().Verify(t.Context(), features.All())
					for kind := range strings.FieldsSeq(row) {
						want := map[string]string{"nftables": "table ip wayleave-service",
							"ebpf":            "/wayleave/sockets-1/link_wl_connect4",
							"iptables-nft":    "chain KUBE-SERVICES of iptables (nft)",
							"iptables-legacy": "chain KUBE-SERVICES of ip6tables (legacy)",
							"ipvs":            "virtual server TCP 10.96.0.50:80"}[kind]
						if err == nil || !strings.Contains(err.Error(), want) {
							t.Errorf("%s is not named by: %v", want, err)
						}
					}
					return nil
				})
				for range 2 { // twice is no error
					n.ns.Must(func() error { return n.open().Uninstall(t.Context(), features.All()) })
				}
				n.ns.Must(func() error { return n.open().Verify(t.Context(), features.All()) })
				if after := n.everything(); after != before {
					t.Errorf("the node is not as it was: %s", firstDifference(before, after))
				}
			})
		}
	}
}
