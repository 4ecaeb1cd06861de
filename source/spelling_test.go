package source

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"wayleave.dev/api"
	"wayleave.dev/model"
)

// spelling writes an address or CIDR in some way that Kubernetes reads alike.
type spelling func(string) string

func plainly(s string) string { return s }

// oddly is with leading zeros, in capitals, or IPv4 in IPv6 form, as stored objects have it.
func oddly(r *rand.Rand) spelling {
	return func(s string) string {
		addr, bits, isCIDR := strings.Cut(s, "/")
		v4 := strings.Contains(addr, ".")
		sep := map[bool]string{true: ".", false: ":"}[v4]
		parts := strings.Split(addr, sep)
		for i, p := range parts {
			if p != "" {
				parts[i] = strings.Repeat("0", r.IntN(3)) + p
			}
		}
		addr = strings.Join(parts, sep)
		if !v4 {
			addr = strings.ToUpper(addr)
		} else if !isCIDR && r.IntN(3) == 0 {
			addr = "::ffff:" + addr
		}
		if isCIDR {
			addr += "/" + strings.Repeat("0", r.IntN(2)) + bits
		}
		return addr
	}
}

// objectsOf are objects of all kinds that have addresses, each address in a spelling. clusterIPs
// of the spelling in spec.clusterIP alone, where both is false.
func objectsOf(say spelling, both bool) (out map[string]any, problems []model.Problem) {
	out = map[string]any{}
	add := func(name string, o any, p []model.Problem) {
		if i, ok := o.(*model.Ingress); ok {
			i.Problems = nil
		}
		out[name], problems = o, append(problems, p...)
	}
	meta := metav1.ObjectMeta{Namespace: "bugs", Name: "zeros",
		Labels:      map[string]string{discoveryv1.LabelServiceName: "zeros"},
		Annotations: map[string]string{"metallb.io/loadBalancerIPs": say("203.0.113.9") + "," + say("2001:db8::9")}}
	svc := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer,
		ClusterIP: say("10.96.7.30"), ExternalIPs: []string{say("198.51.100.7"), say("2001:db8::7")},
		LoadBalancerSourceRanges: []string{" " + say("10.0.0.0/8"), say("2001:db8::/32")},
		LoadBalancerIP:           say("203.0.113.8"),
		Ports:                    []corev1.ServicePort{{Name: "http", Port: 80}},
		IPFamilies:               []corev1.IPFamily{"IPv4", "IPv6"}}}
	if both {
		svc.Spec.ClusterIPs = []string{say("10.96.7.30"), say("fd00:96::30")}
	}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: say("203.0.113.9")}, {IP: say("2001:db8::9")}}
	s, p := Service(svc)
	add("Service", s, p)
	slice := func(name string, family discoveryv1.AddressType, addr string) {
		e, p := EndpointSlice(&discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: family,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{addr}}},
			Ports:     []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(int32(8080))}}})
		add(name, e, p)
	}
	slice("EndpointSlice", discoveryv1.AddressTypeIPv4, say("10.244.1.30"))
	slice("EndpointSlice of IPv6", discoveryv1.AddressTypeIPv6, say("fd00:244::1:30"))
	n, p := Node(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Spec: corev1.NodeSpec{PodCIDRs: []string{say("10.244.1.0/24"), say("fd00:244:0:1::/64")}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP,
			Address: say("192.0.2.11")}, {Type: corev1.NodeExternalIP, Address: say("2001:db8::11")}}}})
	add("Node", n, p)
	pod, p := Pod(&corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: say("10.244.1.31")}, {IP: say("fd00:244:0:1::31")}}}})
	add("Pod", pod, p)
	block := func(cidr string, except ...string) []networkingv1.NetworkPolicyPeer {
		b := &networkingv1.IPBlock{CIDR: say(cidr)}
		for _, e := range except {
			b.Except = append(b.Except, say(e))
		}
		return []networkingv1.NetworkPolicyPeer{{IPBlock: b}}
	}
	np, p := NetworkPolicy(&networkingv1.NetworkPolicy{ObjectMeta: meta, Spec: networkingv1.NetworkPolicySpec{
		Ingress: []networkingv1.NetworkPolicyIngressRule{{From: block("10.10.0.0/16", "10.10.9.0/24", "10.10.8.7/32")}},
		Egress:  []networkingv1.NetworkPolicyEgressRule{{To: block("2001:db8::/32", "2001:db8:9::/48")}}}})
	add("NetworkPolicy", np, p)
	cidrs, p := ServiceCIDR(&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{say("10.96.0.0/16"), say("fd00:96::/112")}}})
	add("ServiceCIDR", cidrs, p)
	ing, p := Ingress(&networkingv1.Ingress{ObjectMeta: meta, Status: networkingv1.IngressStatus{
		LoadBalancer: networkingv1.IngressLoadBalancerStatus{
			Ingress: []networkingv1.IngressLoadBalancerIngress{{IP: say("203.0.113.9")}, {IP: say("2001:db8::9")}}}}})
	add("Ingress", ing, p)
	pool, p := AddressPool(&api.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: api.AddressPoolSpec{
		Addresses: []string{say("192.0.2.0/28"), say("192.0.2.40") + "-" + say("192.0.2.60"), say("192.0.2.70"),
			say("2001:db8:1::/64")}}})
	add("AddressPool", pool, p)
	return out, problems
}

// Objects that API servers before strict validation stored are what they are for kube-proxy, in
// every field that has an address, and nobody is warned of them.
func TestOldSpellingsOfAddressesAreRead(t *testing.T) {
	for _, both := range []bool{false, true} {
		want, problems := objectsOf(plainly, both)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		for seed := range uint64(200) {
			got, problems := objectsOf(oddly(rand.New(rand.NewPCG(seed, 30))), both)
			for _, p := range problems {
				t.Error(p)
			}
			for kind := range want {
				if !reflect.DeepEqual(got[kind], want[kind]) {
					t.Errorf("%s became %+v, want %+v", kind, got[kind], want[kind])
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
	if s, problems := Service(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.010.08"}}); fmt.Sprint(
		s.ClusterIPs, problems) != "[10.96.10.8] []" {
		t.Errorf("zeros are octal: %v %v", s.ClusterIPs, problems)
	}
}

// Host bits have no meaning, as for Kubernetes.
func TestHostBitsOfPodCIDRsAreMasked(t *testing.T) {
	n, problems := Node(&corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.2.7/24"}}})
	if fmt.Sprint(n.PodCIDRs, problems) != "[10.244.2.0/24] []" {
		t.Errorf("became %v, %v", n.PodCIDRs, problems)
	}
}

// What only looks like an old address is refused, and an Ingress host that Kubernetes reads as
// an address is none.
func TestWhatNoComponentReadsIsRefused(t *testing.T) {
	for _, s := range []string{"10.96.0", "10.96.0.256", "10.96.0.0x5", "0x0a600005", "10.96.0.5 ",
		"fe80::1%eth0", "", "web"} {
		if out, problems := Service(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: []string{s}}}); len(
			out.ClusterIPs) > 0 || len(problems) != 1 {
			t.Errorf("%q became %v, %v", s, out.ClusterIPs, problems)
		}
	}
	c := newChecker("Ingress", &metav1.ObjectMeta{})
	if _, ok := c.host("spec.rules[0].host", "192.000.002.001"); ok {
		t.Error("an address is a host")
	}
}

// Labels that take a Service or a slice from the proxy count by their key, whatever the value.
func TestLabelsThatTakeFromTheProxy(t *testing.T) {
	for key, taken := range map[string][2]bool{
		"service.kubernetes.io/service-proxy-name": {true, false}, "service.kubernetes.io/headless": {true, true},
		"service.kubernetes.io/topology-mode": {false, false},
	} {
		for _, value := range []string{"", "true", "false"} {
			in, slice := goodService(), goodSlice()
			in.Labels = map[string]string{key: value}
			slice.Labels[key] = value
			s, p := Service(in)
			e, q := EndpointSlice(slice)
			if s.OtherProxy != taken[0] || e.NotProxied != taken[1] || len(p)+len(q) > 0 {
				t.Errorf("%s=%q: Service %v, slice %v; %v %v", key, value, s.OtherProxy, e.NotProxied, p, q)
			}
		}
	}
}

// FQDN slices are valid objects for others: they are no cause for a warning.
func TestSlicesOfNamesRaiseNoWarning(t *testing.T) {
	in := goodSlice()
	in.AddressType, in.Endpoints[0].Addresses[0] = discoveryv1.AddressTypeFQDN, "db.example.com"
	if s, problems := EndpointSlice(in); s != nil || len(problems) > 0 {
		t.Errorf("became %+v, %v", s, problems)
	}
}

// Names of Services may begin with a digit (relaxed validation, Kubernetes 1.37), wherever they
// are named.
func TestServiceNamesThatBeginWithADigit(t *testing.T) {
	in, slice := goodService(), goodSlice()
	in.Name, slice.Labels[discoveryv1.LabelServiceName] = "7web", "7web"
	s, p := Service(in)
	e, q := EndpointSlice(slice)
	c := newChecker("Ingress", &metav1.ObjectMeta{})
	b := c.ingressBackend("spec.defaultBackend",
		&networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "7web",
			Port: networkingv1.ServiceBackendPort{Number: 80}}})
	if s.Name.Name != "7web" || e.ServiceName() != s.Name || b.Service != "7web" || len(p)+len(q)+len(c.problems) > 0 {
		t.Errorf("became %+v, %+v, %+v; %v %v %v", s, e, b, p, q, c.problems)
	}
}

// Search domains may have underscores, and be the root (relaxed validation, Kubernetes 1.34).
func TestOddSearchDomains(t *testing.T) {
	want := []string{"_tcp.corp_x.example", ".", "a.example."}
	p, problems := Pod(&corev1.Pod{Spec: corev1.PodSpec{NodeName: "n1",
		DNSConfig: &corev1.PodDNSConfig{Searches: want}}})
	if !reflect.DeepEqual(p.Searches, want) || len(problems) > 0 {
		t.Errorf("became %q, %v", p.Searches, problems)
	}
}
