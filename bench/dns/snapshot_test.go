package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// snapshot is a cluster's objects, common and odd ones, with the names to query.
type snapshot struct {
	rand     *rand.Rand
	objects  []metav1.Object
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
	nextVIP  int
}

// lastService is written last: a server that knows it knows all.
const lastService = "zz-last.default.svc." + domain

func newSnapshot(seed uint64) *snapshot {
	s := &snapshot{rand: rand.New(rand.NewPCG(seed, 7)), nextVIP: 20}
	for _, ns := range []string{"default", "kube-system", "prod", "empty", "svc", "pod", "10-0-0-1",
		strings.Repeat("n", 63)} {
		s.objects = append(s.objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	}
	s.clusterIPs()
	s.headless()
	s.externalNames()
	s.odd()
	for i := range 60 {
		s.random(i)
	}
	last := s.service("default", "zz-last", "10.96.255.1")
	s.port(last, "", corev1.ProtocolTCP, 1)
	return s
}

// all returns the objects in an order in which an API server may send them.
func (s *snapshot) all() []metav1.Object {
	list := s.objects
	for _, e := range s.slices {
		list = append(list, e)
	}
	for _, o := range s.services {
		list = append(list, o)
	}
	return list
}

// service adds a Service with addresses, or a headless one without.
func (s *snapshot) service(ns, name string, ips ...string) *corev1.Service {
	o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP}}
	if len(ips) == 0 {
		ips = []string{corev1.ClusterIPNone}
	}
	o.Spec.ClusterIP, o.Spec.ClusterIPs = ips[0], ips
	s.services = append(s.services, o)
	return o
}

func (s *snapshot) port(o *corev1.Service, name string, proto corev1.Protocol, port int32) {
	o.Spec.Ports = append(o.Spec.Ports, corev1.ServicePort{Name: name, Protocol: proto, Port: port})
}

func (s *snapshot) external(ns, name, target string) {
	s.services = append(s.services, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: target}})
}

// slice adds an EndpointSlice of a Service, with its ports under the same numbers.
func (s *snapshot) slice(o *corev1.Service, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	e := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: fmt.Sprintf("%.40s-%d", o.Name, len(s.slices)),
			Labels: map[string]string{discoveryv1.LabelServiceName: o.Name}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints,
	}
	if len(endpoints) > 0 && strings.Contains(endpoints[0].Addresses[0], ":") {
		e.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, p := range o.Spec.Ports {
		e.Ports = append(e.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol),
			Port: ptr.To(p.Port)})
	}
	s.slices = append(s.slices, e)
	return e
}

// ep returns a ready endpoint; flags are "unready", "serving", "nil" or a hostname.
func ep(addr string, flags ...string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{
		Ready: ptr.To(true)}}
	for _, f := range flags {
		switch f {
		case "unready":
			e.Conditions.Ready = ptr.To(false)
		case "serving": // while it ends
			e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true),
				Terminating: ptr.To(true)}
		case "nil": // unknown, which counts as ready
			e.Conditions.Ready = nil
		default:
			e.Hostname = ptr.To(f)
		}
	}
	return e
}

func (s *snapshot) clusterIPs() {
	tcp, udp, sctp := corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP
	api := s.service("default", "kubernetes", "10.96.0.1")
	s.port(api, "https", tcp, 443)
	s.slice(api, ep("172.30.0.2"))
	kd := s.service("kube-system", "kube-dns", "10.96.0.10")
	s.port(kd, "dns", udp, 53)
	s.port(kd, "dns-tcp", tcp, 53)
	s.port(kd, "metrics", tcp, 9153)
	s.slice(kd, ep("10.244.0.2"), ep("10.244.0.3"))
	dual := s.service("prod", "dual", "10.96.1.1", "fd00:96::1:1")
	s.port(dual, "http", tcp, 80)
	s.port(dual, "dns", udp, 53)
	s.port(dual, "dns-tcp", tcp, 53)
	s.port(dual, "sig", sctp, 3868)
	s.slice(dual, ep("10.244.1.10"), ep("10.244.1.11", "unready"))
	s.slice(dual, ep("fd00:244::1:10"), ep("fd00:244::1:11"))
	six := s.service("prod", "six", "fd00:96::1:2")
	s.port(six, "http", tcp, 80)
	swapped := s.service("prod", "six-first", "fd00:96::1:3", "10.96.1.3")
	s.port(swapped, "http", tcp, 80)
	unnamed := s.service("prod", "unnamed", "10.96.1.4")
	s.port(unnamed, "", tcp, 8080)
	named := s.service("prod", "hostnames", "10.96.1.5") // a StatefulSet behind a ClusterIP
	s.port(named, "http", tcp, 80)
	s.slice(named, ep("10.244.1.20", "web-0"), ep("10.244.1.21", "web-1"))
	np := s.service("prod", "node-port", "10.96.1.6")
	np.Spec.Type, np.Spec.ExternalIPs = corev1.ServiceTypeNodePort, []string{"198.51.100.1"}
	s.port(np, "http", tcp, 80)
	np.Spec.Ports[0].NodePort = 30080
	lb := s.service("prod", "balanced", "10.96.1.7")
	lb.Spec.Type = corev1.ServiceTypeLoadBalancer
	lb.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.2"}}
	s.port(lb, "http", tcp, 80)
}

func (s *snapshot) headless() {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	db := s.service("prod", "db")
	s.port(db, "sql", tcp, 5432)
	s.port(db, "repl", tcp, 5433)
	s.slice(db, ep("10.244.2.1", "db-0"), ep("10.244.2.2", "db-1"), ep("10.244.2.3", "db-2", "unready"),
		ep("10.244.2.4", "db-3", "serving"), ep("10.244.2.5", "db-4", "nil"))
	s.slice(db, ep("fd00:244::2:1", "db-0"), ep("fd00:244::2:2", "db-1"), ep("fd00:244::2:3", "db-2", "unready"))
	plain := s.service("prod", "plain")
	s.port(plain, "http", tcp, 80)
	s.slice(plain, ep("10.244.2.10"), ep("10.244.2.11"), ep("10.244.2.12", "unready"))
	s.slice(plain, ep("fd00:244::2:10"), ep("fd00:244::"), ep("fd00::244:0:0:1"))
	boot := s.service("prod", "bootstrap")
	boot.Spec.PublishNotReadyAddresses = true
	s.port(boot, "gossip", udp, 7946)
	// The controller reports all pods of such a Service as ready.
	s.slice(boot, ep("10.244.2.20", "node-0"), ep("10.244.2.21", "node-1"))
	none := s.service("prod", "nobody")
	s.port(none, "http", tcp, 80)
	unready := s.service("prod", "all-unready")
	s.port(unready, "http", tcp, 80)
	s.slice(unready, ep("10.244.2.30", "unready"), ep("10.244.2.31", "host", "unready"))
	portless := s.service("prod", "portless")
	s.slice(portless, ep("10.244.2.40"), ep("10.244.2.41", "named"))
	unnamed := s.service("prod", "headless-unnamed")
	s.port(unnamed, "", tcp, 9000)
	s.slice(unnamed, ep("10.244.2.50"))
	// Named target ports may differ between pods: one slice for each number.
	ports := s.service("prod", "two-ports")
	s.port(ports, "http", tcp, 8080)
	s.slice(ports, ep("10.244.2.60", "old"))
	s.slice(ports, ep("10.244.2.61", "new")).Ports[0].Port = ptr.To[int32](8081)
	same := s.service("prod", "same-host")
	s.port(same, "http", tcp, 80)
	s.slice(same, ep("10.244.2.70", "one"), ep("10.244.2.71", "one"), ep("10.244.2.70", "two"))
	twice := s.service("prod", "twice") // while endpoints move from slice to slice
	s.port(twice, "http", tcp, 80)
	s.slice(twice, ep("10.244.2.80"), ep("10.244.2.81"))
	s.slice(twice, ep("10.244.2.81"), ep("10.244.2.82"))
	long := s.service("prod", "long")
	s.port(long, "http", tcp, 80)
	var list []discoveryv1.Endpoint
	for i := range 150 {
		list = append(list, ep(fmt.Sprintf("10.244.3.%d", i+1)))
	}
	s.slice(long, list[:100]...)
	s.slice(long, list[100:]...)
	mid := s.service("prod", "middle") // above 512 bytes, below 1232
	s.port(mid, "http", tcp, 80)
	s.slice(mid, list[:40]...)
}

func (s *snapshot) externalNames() {
	inside := func(name string) string { return name + ".prod.svc.cluster.local" }
	for _, e := range [][2]string{
		{"ext-out", "www.example.org"},
		{"ext-dot", "www.example.org."},
		{"ext-alias", "alias.example.org"},
		{"ext-case", "WWW.Example.ORG"},
		{"ext-gone", "missing.example.org"},
		{"ext-inside", inside("dual")},
		{"ext-to-db", inside("db")},
		{"ext-to-pod", inside("db-0.db")},
		{"ext-chain-1", inside("ext-chain-2")},
		{"ext-chain-2", inside("ext-chain-3")},
		{"ext-chain-3", "www.example.org"},
		{"ext-chain-in", inside("ext-inside")},
		{"ext-loop-a", inside("ext-loop-b")},
		{"ext-loop-b", inside("ext-loop-a")},
		{"ext-self", inside("ext-self")},
		{"ext-nowhere", inside("missing")},
		{"ext-to-six", inside("six")},
		{"ext-number", "192.0.2.7"},
		{"ext-number-6", "2001:db8::7"},
		{"ext-apex", "cluster.local"},
		{"ext-short", "localhost"},
		{"ext-longest", strings.Repeat(strings.Repeat("x", 49)+".", 4) + "example.org"},
	} {
		s.external("prod", e[0], e[1])
	}
	ports := s.services[len(s.services)-1] // the API allows ports, which have no meaning
	s.port(ports, "http", corev1.ProtocolTCP, 80)
}

func (s *snapshot) odd() {
	tcp := corev1.ProtocolTCP
	for i, key := range [][2]string{{"svc", "svc"}, {"pod", "svc"}, {"svc", "pod"}, {"10-0-0-1", "a1"},
		{strings.Repeat("n", 63), "s" + strings.Repeat("x", 62)}, {"kube-system", "dns"}} {
		o := s.service(key[0], key[1], fmt.Sprintf("10.96.2.%d", i+1))
		s.port(o, "http", tcp, 80)
	}
	pending := s.service("prod", "pending", "")
	pending.Spec.ClusterIPs = nil
	s.port(pending, "http", tcp, 80)
	orphan := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "orphan"}}
	s.slice(orphan, ep("10.244.4.1", "lost")).Ports = []discoveryv1.EndpointPort{{Name: ptr.To("http"),
		Port: ptr.To[int32](80), Protocol: ptr.To(tcp)}}
	// Of a namespace that the API no longer has.
	lost := s.service("deleted", "left-over", "10.96.2.100")
	s.port(lost, "http", tcp, 80)
	s.service("prod", "no-ports", "10.96.2.101")
	label := s.service("prod", "labels") // endpoints whose hostnames look like other names
	s.port(label, "http", tcp, 80)
	s.slice(label, ep("10.244.4.10", "svc"), ep("10.244.4.11", "10-244-4-12"), ep("10.244.4.12"))
}

// random adds a Service of a random kind.
func (s *snapshot) random(i int) {
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	var ips []string
	s.nextVIP++
	switch s.rand.IntN(4) {
	case 0:
		ips = []string{fmt.Sprintf("10.96.3.%d", s.nextVIP)}
	case 1:
		ips = []string{fmt.Sprintf("10.96.3.%d", s.nextVIP), fmt.Sprintf("fd00:96::3:%x", s.nextVIP)}
	case 2:
		ips = []string{fmt.Sprintf("fd00:96::3:%x", s.nextVIP)}
	}
	o := s.service([]string{"default", "prod", "kube-system"}[s.rand.IntN(3)], fmt.Sprintf("any-%d", i), ips...)
	for j := range 1 + s.rand.IntN(3) {
		s.port(o, fmt.Sprintf("p%d", j), protocols[s.rand.IntN(3)], int32(1000+10*i+j))
	}
	for family := range 2 {
		var list []discoveryv1.Endpoint
		for j := range s.rand.IntN(6) {
			a := netip.AddrFrom4([4]byte{10, 244, byte(10 + i), byte(1 + j)}).String()
			if family == 1 {
				a = fmt.Sprintf("fd00:244::%x:%x", 10+i, 1+j)
			}
			var flags []string
			if s.rand.IntN(2) == 0 {
				flags = append(flags, fmt.Sprintf("any-%d-%d", i, j))
			}
			switch s.rand.IntN(8) {
			case 0:
				flags = append(flags, "unready")
			case 1:
				flags = append(flags, "serving")
			}
			list = append(list, ep(a, flags...))
		}
		if len(list) > 0 {
			s.slice(o, list...)
		}
	}
}
