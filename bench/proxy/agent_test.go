package proxy

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/internal/fakeapi"
)

// namespace contains all objects.
const namespace = "bench"

// agent feeds Wayleave's proxy, with an API server.
type agent struct {
	api     *fakeapi.Server
	process *kubeproxy.Process
}

// startOurs starts an API server, an agent and the proxy.
func (k *kit) startOurs(c *contestant, r routes, bin string) {
	k.t.Helper()
	api := fakeapi.New()
	k.t.Cleanup(api.Close)
	port := k.port()
	l := k.ns.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	k.t.Cleanup(func() { l.Close() })
	go func() { _ = api.Serve(l) }()
	api.Put(&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "wayleave"},
		Spec: networkingv1.IngressClassSpec{Controller: "wayleave.dev/ingress"}})
	for name, port := range serviceList(r) {
		put(api, name, port)
	}
	for _, name := range []string{p256Host, rsaHost} {
		raw, err := os.ReadFile(k.pairs[name])
		if err != nil {
			k.t.Fatal(err)
		}
		api.Put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": raw, "tls.key": raw}})
		i := route(name, "app")
		i.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{name}, SecretName: name}}
		api.Put(i)
	}
	api.Put(route(plainHost, "app"))
	for n, port := range r {
		api.Put(route(n, serviceOf(n, port)))
	}
	socket := filepath.Join(k.t.TempDir(), "feed.sock")
	c.rsa = c.p256
	c.agent = &agent{api: api}
	c.agent.process = spawn(k.t, k.ns, "nice", fmt.Sprintf("%s/agent -master http://127.0.0.1:%d -socket %s -plain "+
		"127.0.0.1:%d -tls 127.0.0.1:%d -secrets bench/%s,bench/%s",
		k.bins, port, socket, c.plain, c.p256, p256Host, rsaHost))
	c.process = run(k.t, k.ns, c.plain, first, bin+" -cpuprofile "+k.profileFile()+" -feed "+socket)
	c.apply = func(some routes) error {
		for n, port := range some {
			api.Put(route(n, serviceOf(n, port)))
		}
		return nil
	}
	if err := k.answers(c, plainHost, "a", 60*time.Second); err != nil {
		k.t.Fatal(err)
	}
}

// put writes a Service with one endpoint.
func put(api *fakeapi.Server, name string, port int) {
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	none, ready := "", true
	p := int32(port)
	api.Put(&corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone,
		ClusterIPs: []string{corev1.ClusterIPNone},
		Ports:      []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}})
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: name}
	api.Put(&discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &none, Port: &p}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{endpointAddr},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}})
}

// route returns an Ingress for one host.
func route(host, service string) *networkingv1.Ingress {
	class, kind := "wayleave", networkingv1.PathTypePrefix
	return &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: host},
		Spec: networkingv1.IngressSpec{IngressClassName: &class,
			Rules: []networkingv1.IngressRule{{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{
				HTTP: &networkingv1.HTTPIngressRuleValue{
					Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: &kind,
						Backend: networkingv1.IngressBackend{
							Service: &networkingv1.IngressServiceBackend{Name: service,
								Port: networkingv1.ServiceBackendPort{Number: 80}}}}}}}}}}}
}

// answers waits until the endpoint with that mark answers a new connection's request for a host.
func (k *kit) answers(c *contestant, host, mark string, within time.Duration) (err error) {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(probeEvery) {
		var got string
		if got, err = k.probe(c, host); err == nil && got == mark {
			return nil
		}
	}
	return fmt.Errorf("%s: %s does not lead to %q after %s: %v", c.name, host, mark, within, err)
}
