package judge

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/internal/fakeapi"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/iptables"
)

// difference permits rules that only one side has.
type difference struct {
	ours  bool // Wayleave has it, otherwise kube-proxy
	table string
	rule  string // a pattern for the chain and the complete rule
	why   string
}

// differences are all permitted differences; each must occur.
var differences = []difference{
	{false, "nat",
		`KUBE-NODEPORTS -d 127\.0\.0\.0/8 .* -m nfacct --nfacct-name +localhost_nps_accepted_pkts -j KUBE-EXT-.*`,
		"counts for a metric of kube-proxy; the rule behind it is the same"},
	{false, "filter",
		`KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name +ct_state_invalid_dropped_pkts -j DROP`,
		"counts for a metric of kube-proxy"},
	{true, "filter", `KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP`, "the same without the counter"},

	{false, "nat", `KUBE-SVC-\w+ ! -s 10\.244\.0\.0/16 .* -j KUBE-MARK-MASQ`, "one clusterCIDR, which has to be set"},
	{true, "nat", `KUBE-SVC-\w+ -d .* -j WAYLEAVE-OUTSIDE`, "the podCIDRs of all nodes, from the API, in one chain"},
	{true, "nat", `WAYLEAVE-OUTSIDE .*`, "as above; a node's own processes have the node's address already"},
	{false, "nat", `KUBE-EXT-\w+ -s 10\.244\.0\.0/16 .*pod traffic for .* -j KUBE-SVC-.*`,
		"one clusterCIDR: pods of all nodes may use endpoints of all nodes"},
	{true, "nat", `KUBE-EXT-\w+ -s 10\.244\.1\.0/24 .*pod traffic for .* -j KUBE-SVC-.*`,
		"pods of this node alone: for those of another, which got here by a route, this node is outside, or the " +
			"answer would go past it"},

	{false, "nat", `KUBE-SERVICES -m comment --comment "kubernetes service nodeports; .* -j KUBE-NODEPORTS`,
		"node ports on all addresses of the node"},
	{true, "nat",
		`KUBE-SERVICES -d 192\.0\.2\.11/32 -m comment --comment "kubernetes service nodeports; .* -j KUBE-NODEPORTS`,
		"node ports on the node's InternalIPs by default, as kube-proxy's nftables mode has it (KEP-3866)"},
	{true, "filter", `KUBE-EXTERNAL-SERVICES -d 192\.0\.2\.11/32 .* -j WAYLEAVE-NODEPORTS`,
		"refuses node ports without endpoints on the same addresses"},

	{false, "filter", `(INPUT|OUTPUT) -j KUBE-FIREWALL`,
		"CVE-2020-8558; the kubelet makes the same chain, and it stays the kubelet's"},
	{false, "filter", `KUBE-FIREWALL .*block incoming localnet connections.*`, "as above"},
	{true, "filter", `(INPUT|FORWARD) -j WAYLEAVE-LOCALHOST`,
		"CVE-2020-8558 where no kubelet made KUBE-FIREWALL, and also for connections that are translated"},
	{true, "filter", `WAYLEAVE-LOCALHOST .*`, "as above"},

	{true, "filter", `INPUT .* -j KUBE-SERVICES`,
		"a VIP that is an address of the node is refused, too, where it has no endpoints"},
	{true, "filter", `OUTPUT .* -j KUBE-EXTERNAL-SERVICES`, "the node's own processes are refused at once, too"},
	{false, "filter", `KUBE-SERVICES .*has no endpoints.* -j REJECT --reject-with icmp-port-unreachable`,
		"an ICMP error"},
	{true, "filter", `KUBE-SERVICES .*has no endpoints.* -j REJECT --reject-with tcp-reset`,
		"a reset ends a TCP handshake in both families, an ICMPv6 error does not"},
	{true, "filter", `KUBE-SERVICES .* has no such port" -j WAYLEAVE-REFUSE`,
		"KEP-3866 wants other ports of a ClusterIP rejected"},
	{true, "filter", `WAYLEAVE-REFUSE .*`, "as above"},
}

// TestChains lets kube-proxy and the iptables mode program the same Services, and compares the output of iptables-save
// for both, chain by chain and rule by rule.
func TestChains(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin, _ := kubeproxy.Program(t)
	proxy := filepath.Join(t.TempDir(), "proxy")
	build := exec.Command("go", "build", "-trimpath", "-o", proxy, "../service/proxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	api := fakeapi.New()
	defer api.Close()
	mission(api)
	programmed := func(start func(*testnet.NS)) map[string]iptables.Table {
		node := testnet.New(t, "node")
		fabric := testnet.New(t, "fabric")
		testnet.Veth(node, "eth0", fabric, "p0")
		node.Addr("eth0", "192.0.2.11/24")
		node.Run("ip", "route", "add", "default", "dev", "eth0")
		l := node.Listen("tcp", "127.0.0.1:6443")
		t.Cleanup(func() { l.Close() })
		go func() { _ = api.Serve(l) }()
		start(node)
		var out map[string]iptables.Table
		testnet.Eventually(t, 60*time.Second, func() error {
			out = map[string]iptables.Table{}
			for _, table := range []string{"nat", "filter"} {
				text, err := node.Try("iptables-nft-save", "-t", table)
				if err != nil {
					return err
				}
				out[table] = iptables.Parse([]byte(text))
			}
			if n := strings.Count(fmt.Sprint(out["nat"]), "DNAT"); n != 10 {
				return fmt.Errorf("%d of 10 endpoints", n)
			}
			return nil
		})
		return out
	}
	theirs := programmed(func(n *testnet.NS) {
		kubeproxy.Start(t, bin, n, "node1", "iptables", master, "10.244.0.0/16")
	})
	ours := programmed(func(n *testnet.NS) {
		kubeproxy.Run(t, n, exec.Command(proxy, "-master", master, "-mode", "iptables-nft"))
	})
	met := map[int]bool{}
	same := 0
	for _, table := range []string{"nat", "filter"} {
		chains := map[string]bool{}
		for _, side := range []iptables.Table{theirs[table], ours[table]} {
			for c := range side {
				chains[c] = true
			}
		}
		for _, c := range slices.Sorted(maps.Keys(chains)) {
			left, right := without(theirs[table][c], table, c, false, met), without(ours[table][c], table, c, true, met)
			if c == "KUBE-SERVICES" || c == "KUBE-NODEPORTS" {
				// Each has another address or port; kube-proxy writes them in the order of a Go map.
				slices.Sort(left)
				slices.Sort(right)
			}
			if !slices.Equal(left, right) {
				t.Errorf("chain %s of %s\nof kube-proxy:\n  %s\nof Wayleave:\n  %s", c, table,
					strings.Join(left, "\n  "), strings.Join(right, "\n  "))
			}
			same += len(left)
		}
	}
	if same < 50 {
		t.Errorf("only %d rules are the same", same)
	}
	for i, d := range differences {
		if !met[i] {
			t.Errorf("no rule of %s is like %q any more (%s)", d.table, d.rule, d.why)
		}
	}
	t.Logf("%d rules are the same", same)
}

const master = "http://127.0.0.1:6443"

// without returns the rules of a chain that are not permitted differences.
func without(rules []string, table, chain string, ours bool, met map[int]bool) (out []string) {
next:
	for _, r := range rules {
		for i, d := range differences {
			if d.ours == ours && d.table == table && regexp.MustCompile("^"+d.rule+"$").MatchString(chain+" "+r) {
				met[i] = true
				continue next
			}
		}
		out = append(out, r)
	}
	return out
}

// mission puts example Services: a ClusterIP, one with session affinity, and a node port; and one without endpoints,
// and one of a load balancer.
func mission(api *fakeapi.Server) {
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"},
			Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP,
				Address: "192.0.2.11"}}}})
	backends := []string{"10.244.1.5", "10.244.2.9", "10.244.3.7"}
	for _, s := range []struct {
		name, ip string
		port     corev1.ServicePort
		affinity *corev1.SessionAffinityConfig
		backends []string
	}{
		{"backend", "10.96.100.50", corev1.ServicePort{Port: 80}, nil, backends},
		{"sticky", "10.96.100.51", corev1.ServicePort{Name: "http", Port: 80},
			&corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](3600)}},
			backends},
		{"frontend", "10.96.100.52", corev1.ServicePort{Name: "web", Port: 80, NodePort: 30080}, nil, backends[:2]},
		{"empty", "10.96.100.53", corev1.ServicePort{Port: 80}, nil, nil},
		{"shop", "10.96.100.54", corev1.ServicePort{Port: 443, NodePort: 30443}, nil, backends[:2]},
	} {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.name},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP,
				ClusterIP: s.ip, ClusterIPs: []string{s.ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
				SessionAffinity:       corev1.ServiceAffinityNone,
				InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyCluster)}}
		s.port.Protocol, s.port.TargetPort = corev1.ProtocolTCP, intstr.FromInt32(8080)
		svc.Spec.Ports = []corev1.ServicePort{s.port}
		if s.port.NodePort != 0 {
			svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort,
				corev1.ServiceExternalTrafficPolicyCluster
		}
		if s.name == "shop" {
			svc.Spec.Type, svc.Spec.ExternalTrafficPolicy,
				svc.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer,
				corev1.ServiceExternalTrafficPolicyLocal, 32100
			svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
			svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
				{IP: "203.0.113.2", IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)}}
		}
		if s.affinity != nil {
			svc.Spec.SessionAffinity, svc.Spec.SessionAffinityConfig = corev1.ServiceAffinityClientIP, s.affinity
		}
		sl := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.name + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: s.name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: ptr.To(s.port.Name), Protocol: ptr.To(corev1.ProtocolTCP),
				Port: ptr.To[int32](8080)}}}
		for i, b := range s.backends {
			sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{b},
				NodeName: ptr.To(fmt.Sprint("node", i+1)),
				Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true),
					Terminating: ptr.To(false)}})
		}
		api.Put(svc, sl)
	}
}
