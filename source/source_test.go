package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/model"
)

func goodService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIPs: []string{"10.96.0.5", "fd00::5"},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, NodePort: 30080}, {Name: "dns", Port: 53, Protocol: "UDP"}},
		},
	}
}

func goodSlice() *discoveryv1.EndpointSlice {
	port := int32(8080)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.5"}}, {Addresses: []string{"10.244.0.6"}}},
	}
}

func TestAGoodServiceIsTakenWhole(t *testing.T) {
	s, problems := Service(goodService())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got, want := fmt.Sprintf("%s %s %v %v", s.Name, s.Type, s.ClusterIPs, s.Ports),
		"default/web ClusterIP [10.96.0.5 fd00::5] [{http TCP 80 30080 } {dns UDP 53 0 }]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Every wrong field is named, and the good rest is used.
func TestBadServices(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*corev1.Service)
		want  string
		ports int // that are still used; -1 when the service is refused whole
	}{
		{"port 0", func(s *corev1.Service) { s.Spec.Ports[0].Port = 0 },
			"Service default/web: spec.ports[0].port: 0 is not a port", 1},
		{"port too big", func(s *corev1.Service) { s.Spec.Ports[1].Port = 70000 },
			"spec.ports[1].port: 70000 is not a port", 1},
		{"node port", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = -1 },
			"spec.ports[0].nodePort: -1 is not a port", 2},
		{"protocol", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "ICMP" },
			`spec.ports[0].protocol: "ICMP" is not a protocol`, 1},
		{"address", func(s *corev1.Service) { s.Spec.ClusterIPs[0] = "10.96.0" },
			`spec.clusterIPs[0]: "10.96.0" is not an IP address`, 2},
		{"zone", func(s *corev1.Service) { s.Spec.ClusterIPs[1] = "fe80::1%eth0" }, "has a zone", 2},
		{"two of a family", func(s *corev1.Service) { s.Spec.ClusterIPs[1] = "10.96.0.6" },
			"spec.clusterIPs[1]: 10.96.0.6 is a second address of its family", 2},
		{"same port twice", func(s *corev1.Service) { s.Spec.Ports[1] = s.Spec.Ports[0]; s.Spec.Ports[1].Name = "x" },
			"spec.ports[1].port: 80/TCP is there twice", 1},
		{"same name twice", func(s *corev1.Service) { s.Spec.Ports[1].Name = "http" },
			`spec.ports[1].name: "http" is there twice`, 1},
		{"type", func(s *corev1.Service) { s.Spec.Type = "Magic" }, `spec.type: "Magic" is not a type`, -1},
		{"external name", func(s *corev1.Service) { s.Spec.Type = "ExternalName"; s.Spec.ExternalName = "a..b" },
			`spec.externalName: "a..b" is not a DNS name`, 0},
		{"no external name", func(s *corev1.Service) { s.Spec.Type = "ExternalName" },
			`spec.externalName: "" is not a DNS name`, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := goodService()
			tc.spoil(in)
			s, problems := Service(in)
			if len(problems) != 1 || !strings.Contains(problems[0].Error(), tc.want) {
				t.Errorf("problems are %v, want %s", problems, tc.want)
			}
			if tc.ports < 0 {
				if s != nil {
					t.Errorf("it was used: %+v", s)
				}
				return
			}
			if len(s.Ports) != tc.ports {
				t.Errorf("%d ports are used, want %d", len(s.Ports), tc.ports)
			}
		})
	}
}

func TestBadEndpointSlices(t *testing.T) {
	none := func(int32) *int32 { return nil }
	for _, tc := range []struct {
		name      string
		spoil     func(*discoveryv1.EndpointSlice)
		want      string
		endpoints int // that are still used; -1 when the slice is refused whole
	}{
		{"no number", func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = none(0) },
			"EndpointSlice default/web-1: ports[0].port: is missing", 2},
		{"bad number", func(s *discoveryv1.EndpointSlice) { p := int32(0); s.Ports[0].Port = &p },
			"ports[0].port: 0 is not a port", 2},
		{"type", func(s *discoveryv1.EndpointSlice) { s.AddressType = "Magic" },
			`addressType: "Magic" is not served; IPv4 and IPv6 are`, -1},
		{"no address", func(s *discoveryv1.EndpointSlice) { s.Endpoints[1].Addresses = nil },
			"endpoints[1].addresses: is empty", 1},
		{"no IP", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "web" },
			`endpoints[0].addresses[0]: "web" is not an IP address`, 1},
		{"family", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "fd00::1" },
			"endpoints[0].addresses[0]: fd00::1 does not have the slice's addressType IPv4", 1},
		{"loopback", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "127.0.0.1" },
			"127.0.0.1 cannot be an address of an endpoint", 1},
		{"link-local", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "169.254.169.254" },
			"169.254.169.254 cannot be an address of an endpoint", 1},
		{"multicast", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "224.0.0.1" },
			"224.0.0.1 cannot be an address of an endpoint", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := goodSlice()
			tc.spoil(in)
			s, problems := EndpointSlice(in)
			if len(problems) != 1 || !strings.Contains(problems[0].Error(), tc.want) {
				t.Errorf("problems are %v, want %s", problems, tc.want)
			}
			if (s == nil) != (tc.endpoints < 0) {
				t.Fatalf("slice is %+v", s)
			}
			if s != nil && len(s.Endpoints) != tc.endpoints {
				t.Errorf("%d endpoints are used, want %d", len(s.Endpoints), tc.endpoints)
			}
		})
	}
}

// discovery.k8s.io/v1: a missing ready or serving means true.
func TestEndpointConditionsHaveTheirDefaults(t *testing.T) {
	no, yes := false, true
	in := goodSlice()
	in.Endpoints[1].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	s, _ := EndpointSlice(in)
	if e := s.Endpoints[0]; !e.Ready || !e.Serving || e.Terminating {
		t.Errorf("defaults are %+v", e)
	}
	if e := s.Endpoints[1]; e.Ready || !e.Serving || !e.Terminating {
		t.Errorf("terminating is %+v", e)
	}
	in = goodSlice()
	in.Endpoints[1].Conditions = discoveryv1.EndpointConditions{Ready: &no, Terminating: &yes}
	if s, _ := EndpointSlice(in); !s.Endpoints[1].Serving {
		t.Errorf("without serving it is %+v", s.Endpoints[1])
	}
}

// A kubelet sets the networks of the Node that it registers: none may be everything, or what is not routed.
func TestANodeClaimsNoWideNetwork(t *testing.T) {
	for cidr, used := range map[string]bool{"0.0.0.0/0": false, "::/0": false, "10.0.0.0/7": false, "10.0.0.0/8": true,
		"fc00::/7": false, "fd00::/16": true, "127.1.0.0/16": false, "224.0.0.0/24": false, "fe80::/64": false} {
		in := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", CreationTimestamp: metav1.Unix(7, 0)}}
		in.Spec.PodCIDRs = []string{cidr}
		n, problems := Node(in)
		if len(n.PodCIDRs) == 1 != used || len(problems) == 0 != used || n.Created.Unix() != 7 {
			t.Errorf("%s: used %v, problems %v, created %s", cidr, n.PodCIDRs, problems, n.Created)
		}
	}
}

func TestBadNodes(t *testing.T) {
	in := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	in.Spec.PodCIDRs = []string{"10.244.1.0/24", "nonsense"}
	in.Status.Addresses = []corev1.NodeAddress{{Type: "InternalIP", Address: "x"},
		{Type: "InternalIP", Address: "172.30.0.1"}, {Type: "Hostname", Address: "n1"}}
	n, problems := Node(in)
	if got, want := fmt.Sprint(problems),
		`[Node n1: status.addresses[0]: "x" is not an IP address `+
			`Node n1: spec.podCIDRs[1]: "nonsense" is not a CIDR]`; got != want {
		t.Errorf("problems are %s", got)
	}
	if fmt.Sprint(n.PodCIDRs, n.InternalIPs) != "[10.244.1.0/24] [172.30.0.1]" {
		t.Errorf("used: %+v", n)
	}
}

func TestEndedPodsAreNotKept(t *testing.T) {
	in := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}}
	in.Status.PodIPs = []corev1.PodIP{{IP: "10.244.0.9"}}
	if p, _ := Pod(in); p == nil || p.IPs[0].String() != "10.244.0.9" {
		t.Errorf("running pod is %v", p)
	}
	in.Status.Phase = corev1.PodSucceeded
	if p, _ := Pod(in); p != nil {
		t.Errorf("an ended pod was kept: %v", p)
	}
}

// What the kubelet writes to a pod's resolv.conf follows from dnsPolicy and dnsConfig.
func TestPodDNS(t *testing.T) {
	value := func(s string) []corev1.PodDNSConfigOption {
		return []corev1.PodDNSConfigOption{{Name: "ndots", Value: &s}}
	}
	for _, c := range []struct {
		spec    corev1.PodSpec
		cluster bool
		ndots   int
		problem string
	}{
		{corev1.PodSpec{}, true, 5, ""},
		{corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, DNSConfig: &corev1.PodDNSConfig{Options: value("2")}}, true,
			2, ""},
		{corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, HostNetwork: true}, false, 1, ""},
		{corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirstWithHostNet, HostNetwork: true}, true, 5, ""},
		{corev1.PodSpec{DNSPolicy: corev1.DNSDefault}, false, 1, ""},
		{corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{Options: value("99")}},
			false, 15, ""},
		{corev1.PodSpec{DNSConfig: &corev1.PodDNSConfig{Options: value("many")}}, true, 1,
			"spec.dnsConfig.options[0].value"},
	} {
		in := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}, Spec: c.spec}
		in.Status.PodIPs = []corev1.PodIP{{IP: "10.244.0.9"}}
		p, problems := Pod(in)
		if p == nil || p.ClusterDNS != c.cluster || p.NDots != c.ndots || (len(problems) > 0) != (c.problem != "") ||
			len(problems) > 0 && problems[0].Field != c.problem {
			t.Errorf("%+v: %+v, %v", c.spec, p, problems)
		}
	}
}

// Every knob of a Service is taken over, and a value that cannot be is named by field
// while the rest is served.
func TestKnobsOfServices(t *testing.T) {
	in := goodService()
	local, proxy := corev1.ServiceInternalTrafficPolicyLocal, corev1.LoadBalancerIPModeProxy
	seconds := int32(77)
	in.Spec.Type = corev1.ServiceTypeLoadBalancer
	in.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	in.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{
		TimeoutSeconds: &seconds}}
	in.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	in.Spec.InternalTrafficPolicy = &local
	in.Spec.HealthCheckNodePort = 31000
	in.Spec.ExternalIPs = []string{"192.0.2.1"}
	in.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", " 198.51.100.0/24"}
	in.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}, {IP: "192.0.2.3", IPMode: &proxy},
		{Hostname: "x.example"}}
	in.Labels = map[string]string{proxyNameLabel: "other"}
	s, problems := Service(in)
	if len(problems) > 0 || s.Affinity != 77*time.Second || !s.ExternalLocal || !s.InternalLocal ||
		s.HealthCheckPort != 31000 || !s.OtherProxy ||
		fmt.Sprint(s.ExternalIPs, s.LoadBalancerIPs,
			s.SourceRanges) != "[192.0.2.1] [192.0.2.2] [192.0.2.0/24 198.51.100.0/24]" {
		t.Errorf("%+v, %v", s, problems)
	}
	far, zero := "PreferFar", int32(0)
	weird := corev1.ServiceInternalTrafficPolicy("Nowhere")
	in.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds = &zero
	in.Spec.InternalTrafficPolicy = &weird
	in.Spec.ExternalTrafficPolicy = "Nowhere"
	in.Spec.TrafficDistribution = &far
	in.Spec.ExternalIPs = []string{"127.0.0.1"}
	in.Spec.LoadBalancerSourceRanges = []string{"everywhere"}
	in.Status.LoadBalancer.Ingress[0].IP = "here"
	s, problems = Service(in)
	for _, field := range []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds", "spec.internalTrafficPolicy",
		"spec.externalTrafficPolicy", "spec.trafficDistribution",
		"spec.externalIPs[0]", "spec.loadBalancerSourceRanges[0]", "status.loadBalancer.ingress[0].ip"} {
		if !slices.ContainsFunc(problems, func(p model.Problem) bool { return p.Field == field }) {
			t.Errorf("%s is not named by %v", field, problems)
		}
	}
	if len(s.Ports) != len(in.Spec.Ports) || len(s.SourceRanges) != 1 {
		t.Errorf("the rest is %+v; a wrong range must not let everybody in", s)
	}
}

// A range that cannot be read lets nobody in, in neither family of the balancer.
func TestAWrongSourceRangeOpensNoDoor(t *testing.T) {
	in := goodService()
	in.Spec.Type = corev1.ServiceTypeLoadBalancer
	in.Spec.LoadBalancerSourceRanges = []string{"everywhere"}
	in.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.2"}, {IP: "2001:db8::2"}}
	s, problems := Service(in)
	if got := fmt.Sprint(s.SourceRanges); got != "[0.0.0.0/32 ::/128]" || len(problems) != 1 ||
		problems[0].Field != "spec.loadBalancerSourceRanges[0]" {
		t.Errorf("ranges are %s, %v", got, problems)
	}
}

// Node ports and health check ports of the node's own listeners are refused by name.
func TestPortsOfTheNodeAreNoNodePorts(t *testing.T) {
	for port, whose := range map[int32]string{10250: "kubelet", 6443: "API server", 10053: "DNS", 2379: "etcd",
		7946: "heartbeats", 10256: "Wayleave"} {
		in := goodService()
		in.Spec.Type = corev1.ServiceTypeLoadBalancer
		in.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		in.Spec.HealthCheckNodePort = port
		in.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80, NodePort: port}}
		s, problems := Service(in)
		if len(problems) != 2 || s.HealthCheckPort != 0 || s.Ports[0].NodePort != 0 {
			t.Errorf("%d: %+v, %v", port, s, problems)
		}
		for _, p := range problems {
			if !strings.Contains(p.Reason, whose) || p.Field != "spec.ports[0].nodePort" &&
				p.Field != "spec.healthCheckNodePort" {
				t.Errorf("%d: %v", port, p)
			}
		}
	}
}

// One Service has bounds, whatever it asks for; source ranges that are left out deny, in
// both families.
func TestAServiceHasBounds(t *testing.T) {
	in := goodService()
	in.Spec.Type = corev1.ServiceTypeLoadBalancer
	in.Spec.ClusterIPs, in.Spec.ClusterIP = []string{"10.96.0.9", "fd00:96::9"}, "10.96.0.9"
	in.Spec.Ports = nil
	for i := range 3000 {
		in.Spec.Ports = append(in.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(1 + i)})
	}
	for i := range 2000 {
		in.Spec.ExternalIPs = append(in.Spec.ExternalIPs, fmt.Sprintf("203.0.%d.%d", i/250, 1+i%250))
		in.Spec.LoadBalancerSourceRanges = append(in.Spec.LoadBalancerSourceRanges, fmt.Sprintf("198.%d.%d.0/24",
			i/250, i%250))
	}
	in.Spec.LoadBalancerSourceRanges = append(in.Spec.LoadBalancerSourceRanges, "2001:db8::/64")
	in.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}, {IP: "2001:db8::1"}}
	for ports := range []int{0, 1, 2} {
		cut := *in.DeepCopy()
		cut.Spec.Ports = cut.Spec.Ports[:[]int{3000, 700, 1}[ports]]
		s, problems := Service(&cut)
		if n := len(s.Ports) * (len(s.ClusterIPs) + len(s.LoadBalancerIPs) + len(s.ExternalIPs)); n > maxFrontends ||
			n < 1000 {
			t.Errorf("%d frontends", n)
		}
		if n := len(s.SourceRanges); n > maxSourceRanges+2 || n*len(s.LoadBalancerIPs)*len(s.Ports) > maxGuards+
			2*maxFrontends {
			t.Errorf("%d ranges", n)
		}
		for _, is6 := range []bool{false, true} {
			if !slices.ContainsFunc(s.SourceRanges, func(p netip.Prefix) bool { return p.Addr().Is6() == is6 }) &&
				len(s.LoadBalancerIPs) > 0 {
				t.Errorf("no range is left of IPv6 = %v: everybody is let in", is6)
			}
		}
		if len(problems) < 1 {
			t.Error("nothing is named")
		}
		for _, p := range problems {
			if !strings.Contains(p.Reason, "are allowed for one Service") {
				t.Errorf("%v", p)
			}
		}
	}
}

// A node that has ExternalIPs alone is at those, as Kubernetes itself takes it (nodeutil.GetNodeHostIPs); beside an
// InternalIP they stay what they are.
func TestANodeWithExternalIPsAlone(t *testing.T) {
	external := corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "203.0.113.1"}
	for want, addrs := range map[string][]corev1.NodeAddress{
		"[203.0.113.1] [203.0.113.1]": {{Type: corev1.NodeHostName, Address: "n"}, external},
		"[10.0.0.1] [203.0.113.1]":    {external, {Type: corev1.NodeInternalIP, Address: "10.0.0.1"}},
		"[] []":                       {{Type: corev1.NodeHostName, Address: "n"}},
	} {
		n, problems := Node(&corev1.Node{Status: corev1.NodeStatus{Addresses: addrs}})
		if got := fmt.Sprint(n.InternalIPs, n.ExternalIPs); got != want || len(problems) > 0 {
			t.Errorf("%s, want %s; %v", got, want, problems)
		}
	}
}

// Load balancers send nothing to a node that is being deleted, or is out of service.
func TestLeavingNodes(t *testing.T) {
	for taint, want := range map[string]bool{"": false, "example.com/other": false, toBeDeleted: true,
		corev1.TaintNodeOutOfService: true} {
		in := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		if taint != "" {
			in.Spec.Taints = []corev1.Taint{{Key: taint, Effect: corev1.TaintEffectNoExecute}}
		}
		if n, _ := Node(in); n.Leaving != want {
			t.Errorf("taint %q: leaving %t", taint, n.Leaving)
		}
	}
}
