package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/api"
	"wayleave.dev/model"
)

func pool(addresses ...string) *api.AddressPool {
	return &api.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: api.AddressPoolSpec{Addresses: addresses}}
}

func TestPools(t *testing.T) {
	out, problems := AddressPool(pool("192.0.2.0/28", "198.51.100.10 - 198.51.100.20", "2001:db8::/64", "203.0.113.7"))
	if len(problems) > 0 || out.Invalid != "" {
		t.Fatal(problems)
	}
	var got []string
	for _, r := range out.Ranges {
		got = append(got, r.String())
	}
	want := "192.0.2.0-192.0.2.15 198.51.100.10-198.51.100.20 2001:db8::-2001:db8::ffff:ffff:ffff:ffff 203.0.113.7"
	if strings.Join(got, " ") != want || !out.AutoAssign || !out.L2.Enabled || !out.Services.Matches(nil) ||
		!out.L2.Nodes.Matches(nil) {
		t.Errorf("read %v, %+v", got, out)
	}
}

// A bad part is named by its field; the good ones are used.
func TestBadPools(t *testing.T) {
	selector := func(op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: op,
			Values: values}}}
	}
	for _, tc := range []struct {
		name   string
		change func(*api.AddressPoolSpec)
		want   string
		ranges int
	}{
		{"empty", func(s *api.AddressPoolSpec) { s.Addresses = nil }, "spec.addresses: is empty", 0},
		{"no address", func(s *api.AddressPoolSpec) { s.Addresses[1] = "lan" },
			`spec.addresses[1]: "lan" is not an IP address`, 1},
		{"no CIDR", func(s *api.AddressPoolSpec) { s.Addresses[1] = "192.0.2.0/33" },
			`spec.addresses[1]: "192.0.2.0/33" is not a CIDR`, 1},
		{"host bits", func(s *api.AddressPoolSpec) { s.Addresses[1] = "192.0.2.1/24" },
			"host bits set; write 192.0.2.0/24", 1},
		{"wrong way round", func(s *api.AddressPoolSpec) { s.Addresses[1] = "192.0.2.9-192.0.2.1" },
			"ends before it begins; write 192.0.2.1-192.0.2.9", 1},
		{"two families", func(s *api.AddressPoolSpec) { s.Addresses[1] = "192.0.2.1-2001:db8::1" },
			"mixes families", 1},
		{"half a range", func(s *api.AddressPoolSpec) { s.Addresses[1] = "192.0.2.1-" },
			`spec.addresses[1]: "" is not an IP address`, 1},
		{"three ends", func(s *api.AddressPoolSpec) { s.Addresses[1] = "192.0.2.1-192.0.2.2-192.0.2.3" },
			"is not an IP address", 1},
		{"zone", func(s *api.AddressPoolSpec) { s.Addresses[1] = "2001:db8::1%eth0" }, "has a zone", 1},
		{"everything", func(s *api.AddressPoolSpec) { s.Addresses[1] = "0.0.0.0/0" },
			"unspecified addresses (0.0.0.0/8)", 1},
		{"multicast in it", func(s *api.AddressPoolSpec) { s.Addresses[1] = "223.0.0.0-225.0.0.0" },
			"multicast addresses (224.0.0.0/4)", 1},
		{"link-local", func(s *api.AddressPoolSpec) { s.Addresses[1] = "fe80::/64" }, "link-local addresses", 1},
		{"operator", func(s *api.AddressPoolSpec) { s.ServiceSelector = selector("Like", "b") },
			"spec.serviceSelector.matchExpressions[0].operator", 2},
		{"values", func(s *api.AddressPoolSpec) { s.NamespaceSelector = selector("In") },
			"spec.namespaceSelector.matchExpressions[0].values", 2},
		{"label", func(s *api.AddressPoolSpec) {
			s.L2.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"a b": "c"}}
		}, "spec.l2.nodeSelector.matchLabels[a b]", 2},
		{"interface", func(s *api.AddressPoolSpec) { s.L2.Interfaces = []string{"eth0", "eth["} },
			"spec.l2.interfaces[1]", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := pool("198.51.100.0/24", "192.0.2.1")
			tc.change(&in.Spec)
			out, problems := AddressPool(in)
			if len(problems) != 1 || !strings.Contains(problems[0].Error(), "AddressPool lan: ") ||
				!strings.Contains(problems[0].Error(), tc.want) {
				t.Errorf("problems are %v, want %s", problems, tc.want)
			}
			if len(out.Ranges) != tc.ranges || out.Invalid == "" {
				t.Errorf("used: %+v", out)
			}
		})
	}
	in := pool("192.0.2.1")
	in.Spec.ServiceSelector = selector("Like", "b")
	if out, _ := AddressPool(in); out.Services.Matches(map[string]string{"a": "b"}) {
		t.Error("a selector that cannot be read opens the pool")
	}
	in = pool("192.0.2.1")
	in.Spec.L2.Interfaces = []string{"["}
	if out, _ := AddressPool(in); out.L2.Enabled {
		t.Error("without a good interface it would be answered on all")
	}
}

func balanced(annotations map[string]string) *corev1.Service {
	require := corev1.IPFamilyPolicyRequireDualStack
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u", Annotations: annotations,
			Labels: map[string]string{"app": "web"}},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{"IPv4", "IPv6"},
			IPFamilyPolicy: &require,
			Selector:       map[string]string{"b": "2", "a": "1"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

// MetalLB's annotations mean the same as ours; ours win.
func TestWhatAServiceAsksFor(t *testing.T) {
	for _, prefix := range []string{"wayleave.dev/", "metallb.io/", "metallb.universe.tf/"} {
		ips := prefix + "loadBalancerIPs"
		if prefix == "wayleave.dev/" {
			ips = prefix + "load-balancer-ips"
		}
		in := balanced(map[string]string{ips: "192.0.2.1, 2001:db8::1", prefix + "address-pool": "lan", prefix +
			"allow-shared-ip": "key"})
		proxy := corev1.LoadBalancerIPModeProxy
		in.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1", IPMode: &proxy},
			{Hostname: "x"}, {IP: "2001:db8::1"}}
		in.Status.Conditions = []metav1.Condition{{Type: "Other"}, {Type: AddressCondition, Reason: "Full",
			Message: "no"}}
		out, problems := Service(in)
		lb := out.LoadBalancer
		if len(problems) > 0 || lb == nil {
			t.Fatal(problems, lb)
		}
		both := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
		if !slices.Equal(lb.Requested, both) || lb.RequestedField != "metadata.annotations["+ips+"]" ||
			lb.Pool != "lan" || lb.SharingKey != "key" ||
			!lb.IPv4 || !lb.IPv6 || lb.Policy != model.RequireDualStack || lb.Selector != "a=1,b=2," || lb.UID != "u" ||
			lb.Labels["app"] != "web" ||
			!slices.Equal(lb.Given, both) || lb.Condition != "Full: no" {
			t.Errorf("read %+v", lb)
		}
	}
	in := balanced(map[string]string{"kube-vip.io/loadbalancerIPs": "192.0.2.7, ,2001:db8::7,",
		"kube-vip.io/vipHost": "n1"})
	if out, problems := Service(in); fmt.Sprint(out.LoadBalancer.Requested, problems) != "[192.0.2.7 2001:db8::7] []" {
		t.Errorf("kube-vip's: asked for %v, %v", out.LoadBalancer.Requested, problems)
	}
	in = balanced(map[string]string{"kube-vip.io/loadbalancerIPs": "0.0.0.0"})
	if out, problems := Service(in); len(out.LoadBalancer.Requested) > 0 || len(problems) != 1 {
		t.Errorf("kube-vip's DHCP: asked for %v, %v", out.LoadBalancer.Requested, problems)
	}
	in = balanced(map[string]string{"metallb.io/loadBalancerIPs": "192.0.2.2",
		"wayleave.dev/load-balancer-ips": "192.0.2.1"})
	in.Spec.LoadBalancerIP = "192.0.2.3"
	out, _ := Service(in)
	if got := out.LoadBalancer.Requested; len(got) != 1 || got[0] != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("asked for %v", got)
	}
	in.Annotations = nil
	out, _ = Service(in)
	if lb := out.LoadBalancer; len(lb.Requested) != 1 || lb.Requested[0] != netip.MustParseAddr("192.0.2.3") ||
		lb.RequestedField != "spec.loadBalancerIP" {
		t.Errorf("asked for %+v", lb)
	}
	in.Spec.Type = corev1.ServiceTypeNodePort
	if out, _ = Service(in); out.LoadBalancer != nil {
		t.Error("a NodePort service asks for an address")
	}
}

func TestBadWishesOfAService(t *testing.T) {
	const field = "metadata.annotations[wayleave.dev/load-balancer-ips]: "
	for _, tc := range []struct {
		name, ips string
		families  []corev1.IPFamily
		want      string
		left      int
	}{
		{"no address", "192.0.2.1,lan", nil, field + `"lan" is not an IP address`, 1},
		{"two of a family", "192.0.2.1,192.0.2.2", nil, field + "192.0.2.2 is a second address", 1},
		{"not its family", "192.0.2.1,2001:db8::1", []corev1.IPFamily{"IPv4"}, field + "2001:db8::1 has a family", 1},
		{"loopback", "127.0.0.1", nil, field + "127.0.0.1 cannot be an address of a Service", 0},
		{"family", "192.0.2.1", []corev1.IPFamily{"IPv4", "IPX"}, `spec.ipFamilies[1]: "IPX" is not a family`, 1},
	} {
		in := balanced(map[string]string{"wayleave.dev/load-balancer-ips": tc.ips})
		if tc.families != nil {
			in.Spec.IPFamilies = tc.families
		}
		out, problems := Service(in)
		if len(problems) != 1 || !strings.Contains(problems[0].Error(), tc.want) ||
			len(out.LoadBalancer.Requested) != tc.left {
			t.Errorf("%s: %v, %+v", tc.name, problems, out.LoadBalancer)
		}
	}
}

func TestNodesThatAreExcluded(t *testing.T) {
	out, _ := Node(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n",
		Labels: map[string]string{corev1.LabelNodeExcludeBalancers: ""}}})
	if !out.Excluded || len(out.Labels) != 1 {
		t.Errorf("read %+v", out)
	}
}
