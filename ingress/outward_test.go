package ingress

import (
	"fmt"
	"testing"

	"wayleave.dev/model"
)

// What auth-url may not ask follows from nodes, the API server's endpoints, and Services
// that lead there; the proxies' own Service may be asked.
func TestOutwardFollowsNodesAndServices(t *testing.T) {
	const yaml = `
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1},
  {type: InternalIP, address: "2001:db8::1"}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: default, name: kubernetes},
  spec: {clusterIP: 10.96.0.100, ports: [{name: https, port: 443}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
  metadata: {namespace: default, name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}},
  ports: [{name: https, port: 6443}], endpoints: [{addresses: [198.51.100.6]}]}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: onhost},
  spec: {clusterIP: 10.96.0.101, externalIPs: [203.0.113.5], ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
  metadata: {namespace: shop, name: onhost-1, labels: {kubernetes.io/service-name: onhost}},
  ports: [{name: http, port: 9100}], endpoints: [{addresses: [10.244.1.5]}, {addresses: [192.0.2.1]}]}
---
{apiVersion: v1, kind: Service, metadata: {namespace: kube-system, name: door},
  spec: {clusterIP: 10.96.0.102, ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
  metadata: {namespace: kube-system, name: door-1, labels: {kubernetes.io/service-name: door}},
  ports: [{name: http, port: 10080}], endpoints: [{addresses: [192.0.2.1]}]}
`
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+yaml)
	o := Outward{ProxyService: model.Name{Namespace: "kube-system", Name: "door"}}
	want := "[10.96.0.100 10.96.0.101 192.0.2.1 198.51.100.6 203.0.113.5 2001:db8::1]"
	if got := fmt.Sprint(o.Refused(w.store.Snapshot(), model.Changes{})); got != want {
		t.Errorf("refused are %s, want %s", got, want)
	}
	// A Service that leads elsewhere now.
	snap := w.store.Snapshot()
	onhost := model.Name{Namespace: "shop", Name: "onhost"}
	var changed model.Changes
	changed.Add(model.ServiceKind, onhost)
	for s := range snap.EndpointSlices(onhost) {
		moved := *s
		moved.Endpoints = moved.Endpoints[:1]
		if err := w.store.Write(func(tx *model.Writer) { tx.PutEndpointSlice(&moved) }); err != nil {
			t.Fatal(err)
		}
	}
	want = "[10.96.0.100 192.0.2.1 198.51.100.6 2001:db8::1]"
	if got := fmt.Sprint(o.Refused(w.store.Snapshot(), changed)); got != want {
		t.Errorf("refused are %s, want %s", got, want)
	}
}

// A node is its external addresses and that of its proxy, too. What a Service claims and does not
// get keeps no client from asking there.
func TestOutwardKnowsAllAddressesOfANode(t *testing.T) {
	const yaml = `
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.7.0/24]},
  status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: ExternalIP, address: 198.51.100.9}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: kube-system, name: door},
  spec: {type: LoadBalancer, clusterIP: 10.96.0.102, ports: [{name: http, port: 80}]},
  status: {loadBalancer: {ingress: [{ip: 203.0.113.80}]}}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: auth, name: oauth2-proxy},
  spec: {clusterIP: 10.96.0.103, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: thief},
  spec: {clusterIP: 10.96.0.101, externalIPs: [203.0.113.5, 10.96.0.103, 203.0.113.80],
  ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
  metadata: {namespace: shop, name: thief-1, labels: {kubernetes.io/service-name: thief}},
  ports: [{name: http, port: 9100}], endpoints: [{addresses: [198.51.100.9]}]}
`
	w := newFixture(t, Settings{Default: true}, yaml)
	o := Outward{ProxyService: model.Name{Namespace: "kube-system", Name: "door"}}
	want := "[10.96.0.101 10.244.7.254 192.0.2.1 198.51.100.9 203.0.113.5]"
	if got := fmt.Sprint(o.Refused(w.store.Snapshot(), model.Changes{})); got != want {
		t.Errorf("refused are %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(o.Cluster()), "[10.96.0.0/16 10.244.7.0/24]"; got != want {
		t.Errorf("networks of the cluster are %s, want %s", got, want)
	}
}
