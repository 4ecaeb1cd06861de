// Package judge runs the packet table of service/conformance with the real kube-proxy, to find every difference between
// it and Wayleave.
package judge

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
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
	"wayleave.dev/model"
	"wayleave.dev/service/conformance"
)

// TestKubeProxy runs the table; WAYLEAVE_JUDGE is nftables or iptables. docs/bench-judge.md lists what kube-proxy does
// differently, with the rule that decides.
func TestKubeProxy(t *testing.T) {
	mode := os.Getenv("WAYLEAVE_JUDGE")
	if mode == "" {
		t.Skip("WAYLEAVE_JUDGE is not set: nftables or iptables")
	}
	bin, _ := kubeproxy.Program(t)
	running := map[string]*proxy{}
	conformance.Run(t, func(n *conformance.Node) conformance.Mode {
		if old := running[n.Name]; old != nil { // a restart: the API server stays
			old.process.Stop()
			old.process = nil
			return old
		}
		m := newProxy(t, n, mode, bin)
		running[n.Name] = m
		return m
	})
}

// proxy is kube-proxy as a mode.
type proxy struct {
	t       *testing.T
	node    *conformance.Node
	mode    string
	bin     string
	api     *fakeapi.Server
	process *kubeproxy.Process
	have    map[string]metav1.Object
	marker  int32
}

// newProxy returns a kube-proxy with its own API server, not yet started.
func newProxy(t *testing.T, n *conformance.Node, mode, bin string) *proxy {
	api := fakeapi.New()
	l := n.NS.Listen("tcp", "127.0.0.1:6443")
	go func() { _ = api.Serve(l) }()
	t.Cleanup(func() { api.Close(); l.Close() })
	m := &proxy{t: t, node: n, mode: mode, bin: bin, api: api, have: map[string]metav1.Object{}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name,
		Labels: map[string]string{corev1.LabelTopologyZone: n.Zone, corev1.LabelHostname: n.Name}}}
	for _, a := range n.Addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP,
			Address: a.String()})
	}
	for _, c := range n.OwnCIDRs {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, c.String())
	}
	node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	api.Put(node)
	return m
}

// Program implements conformance.Mode: it waits for a marker Service that it adds itself.
func (m *proxy) Program(_ context.Context, snap model.Snapshot) error {
	m.marker++
	want := map[string]metav1.Object{}
	add := func(o metav1.Object) { want[fmt.Sprintf("%T/%s/%s", o, o.GetNamespace(), o.GetName())] = o }
	for s := range snap.Services() {
		if s.OtherProxy {
			continue // a label selector hides it from kube-proxy
		}
		add(apiService(s))
		for sl := range snap.EndpointSlices(s.Name) {
			if !sl.NotProxied { // likewise
				add(apiSlice(sl))
			}
		}
	}
	port := 20000 + m.marker%10000
	mark := &model.Service{Name: model.Name{Namespace: "zz", Name: "marker"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.255.254"), netip.MustParseAddr("fd00:96::ffff")},
		Ports:      []model.ServicePort{{Protocol: model.TCP, Port: uint16(port)}}}
	var gone []metav1.Object
	for k, o := range m.have {
		if want[k] == nil && o.GetNamespace() != "zz" {
			gone = append(gone, o)
		}
	}
	m.api.Delete(gone...)
	for _, k := range slices.Sorted(maps.Keys(want)) {
		m.api.Put(want[k])
	}
	m.have = want
	m.api.Put(apiService(mark))
	for i, a := range []string{"10.244.99.9", "fd00:244:0:99::9"} {
		m.api.Put(apiSlice(&model.EndpointSlice{Name: model.Name{Namespace: "zz", Name: fmt.Sprint("marker-", i)},
			Service:   "marker",
			Ports:     []model.EndpointPort{{Protocol: model.TCP, Port: uint16(port)}},
			Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr(a), Ready: true, Serving: true}}}))
	}
	if m.process == nil {
		m.process = kubeproxy.Start(m.t, m.bin, m.node.NS, m.node.Name, m.mode, "http://127.0.0.1:6443",
			"10.244.0.0/16,fd00:244::/48")
	}
	// In the VM it starts in half a minute.
	testnet.Eventually(m.t, 3*time.Minute, func() error { return m.synced(port) })
	// It changes connection tracking after that.
	time.Sleep(200 * time.Millisecond)
	return nil
}

// synced looks for the marker in the kernel, in both families.
func (m *proxy) synced(port int32) error {
	commands := [][]string{{"nft", "list", "table", "ip", "kube-proxy"}, {"nft", "list", "table", "ip6", "kube-proxy"}}
	if m.mode == "iptables" {
		commands = [][]string{{"iptables-save", "-t", "nat"}, {"ip6tables-save", "-t", "nat"}}
	}
	if m.mode == "ipvs" {
		return m.served(port)
	}
	for _, c := range commands {
		out, err := m.node.NS.Try(c[0], c[1:]...)
		if err != nil {
			return err
		}
		// The port of the Service and of its endpoint is the same.
		if strings.Count(out, fmt.Sprint(port)) < 2 || !strings.Contains(out, ":"+fmt.Sprint(port)) &&
			!strings.Contains(out, ". "+fmt.Sprint(port)) {
			return fmt.Errorf("the marker %d is missing", port)
		}
	}
	return nil
}

// served looks for the marker's virtual servers of both families, which have an endpoint, and for what is written after
// them: the marker in the sets, and the rules that use them.
func (m *proxy) served(port int32) error {
	for _, want := range []struct {
		command, text string
		times         int
	}{
		{"ipvsadm -Sn", fmt.Sprintf(":%d -r ", port), 2},
		{"ipset list KUBE-CLUSTER-IP", fmt.Sprintf(",tcp:%d", port), 1},
		{"ipset list KUBE-6-CLUSTER-IP", fmt.Sprintf(",tcp:%d", port), 1},
		{"iptables-save -t nat", "--match-set KUBE-CLUSTER-IP ", 1},
		{"ip6tables-save -t nat", "--match-set KUBE-6-CLUSTER-IP ", 1},
	} {
		words := strings.Fields(want.command)
		out, err := m.node.NS.Try(words[0], words[1:]...)
		if err != nil {
			return err
		}
		if strings.Count(out, want.text) < want.times {
			return fmt.Errorf("%s does not have %q yet", want.command, want.text)
		}
	}
	return nil
}

// Disturb implements conformance.Mode.
func (m *proxy) Disturb(node *testnet.NS) {
	node.Run("nft", "flush", "ruleset")
	if m.mode == "iptables" {
		for _, c := range []string{"iptables", "ip6tables"} {
			_ = exec.Command(c) // legacy tables are flushed with the ruleset if they are nft's
		}
	}
}

func apiService(s *model.Service) *corev1.Service {
	out := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: s.Name.Namespace, Name: s.Name.Name}}
	out.Spec.Type = map[model.ServiceType]corev1.ServiceType{model.ClusterIP: corev1.ServiceTypeClusterIP,
		model.NodePort: corev1.ServiceTypeNodePort, model.LoadBalancer: corev1.ServiceTypeLoadBalancer}[s.Type]
	for i, a := range s.ClusterIPs {
		if i == 0 {
			out.Spec.ClusterIP = a.String()
		}
		out.Spec.ClusterIPs = append(out.Spec.ClusterIPs, a.String())
		family := corev1.IPv4Protocol
		if a.Is6() {
			family = corev1.IPv6Protocol
		}
		out.Spec.IPFamilies = append(out.Spec.IPFamilies, family)
	}
	for _, p := range s.Ports {
		out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{Name: p.Name,
			Protocol: corev1.Protocol(p.Protocol.String()), Port: int32(p.Port), NodePort: int32(p.NodePort),
			TargetPort: intstr.FromInt32(8080)})
	}
	for _, a := range s.ExternalIPs {
		out.Spec.ExternalIPs = append(out.Spec.ExternalIPs, a.String())
	}
	for _, a := range s.LoadBalancerIPs {
		out.Status.LoadBalancer.Ingress = append(out.Status.LoadBalancer.Ingress,
			corev1.LoadBalancerIngress{IP: a.String(), IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)})
	}
	for _, r := range s.SourceRanges {
		out.Spec.LoadBalancerSourceRanges = append(out.Spec.LoadBalancerSourceRanges, r.String())
	}
	out.Spec.SessionAffinity = corev1.ServiceAffinityNone
	if s.Affinity > 0 {
		out.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		out.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{
			TimeoutSeconds: ptr.To(int32(s.Affinity.Seconds()))}}
	}
	out.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	if s.ExternalLocal {
		out.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	out.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyCluster)
	if s.InternalLocal {
		out.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	return out
}

func apiSlice(s *model.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: s.Name.Namespace, Name: s.Name.Name,
		Labels: map[string]string{discoveryv1.LabelServiceName: s.Service}},
		AddressType: discoveryv1.AddressTypeIPv4}
	if strings.HasSuffix(s.Name.Name, "-true") { // the world's name of an IPv6 slice, also of an empty one
		out.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name),
			Protocol: ptr.To(corev1.Protocol(p.Protocol.String())), Port: ptr.To(int32(p.Port))})
	}
	for _, e := range s.Endpoints {
		if e.Addr.Is6() {
			out.AddressType = discoveryv1.AddressTypeIPv6
		}
		ep := discoveryv1.Endpoint{Addresses: []string{e.Addr.String()}, Conditions: discoveryv1.EndpointConditions{
			Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating}}
		if e.Node != "" {
			ep.NodeName = ptr.To(e.Node)
		}
		for _, z := range e.ForZones {
			hints(&ep).ForZones = append(hints(&ep).ForZones, discoveryv1.ForZone{Name: z})
		}
		for _, n := range e.ForNodes {
			hints(&ep).ForNodes = append(hints(&ep).ForNodes, discoveryv1.ForNode{Name: n})
		}
		out.Endpoints = append(out.Endpoints, ep)
	}
	return out
}

func hints(e *discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	if e.Hints == nil {
		e.Hints = &discoveryv1.EndpointHints{}
	}
	return e.Hints
}
