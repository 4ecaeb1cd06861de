package service

import (
	"fmt"
	"strings"
	"testing"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/model"
	"wayleave.dev/source/manifest"
)

// anotherCNI is a cluster whose pods have addresses outside of the nodes' podCIDRs, as IPAM of Calico, Cilium and AWS
// gives them; n3 has an ExternalIP alone.
const anotherCNI = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}, {type: ExternalIP, address: 203.0.113.12}]}
---
apiVersion: v1
kind: Node
metadata: {name: n3}
status: {addresses: [{type: ExternalIP, address: 203.0.113.13}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: bugs, name: calico-like}
spec: {nodeName: n1}
status: {phase: Running, podIPs: [{ip: 10.244.180.7}, {ip: "fd00:180::7"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: bugs, name: vpc-like}
spec: {nodeName: n2}
status: {phase: Running, podIPs: [{ip: 192.0.2.77}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: bugs, name: host}
spec: {nodeName: n1, hostNetwork: true}
status: {phase: Running, podIPs: [{ip: 192.0.2.11}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: kube-system, name: kube-dns}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: dns, port: 53, protocol: UDP}]}
`

func beside(t *testing.T, podnetwork bool) (config.Config, model.Snapshot) {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	if problems, err := manifest.Read(store, "cluster.yaml", strings.NewReader(anotherCNI)); err != nil ||
		len(problems) > 0 {
		t.Fatal(problems, err)
	}
	cfg := config.Default()
	cfg.PodNetwork.Enabled = podnetwork
	return cfg, store.Snapshot()
}

// Beside another CNI no client of a Service is taken for a stranger: pods keep their address, which policies know. The
// node's own pods are those of the API.
func TestServicesBesideAnotherCNI(t *testing.T) {
	for podnetwork, want := range map[bool]string{true: "[10.244.1.0/24] [10.244.1.0/24]",
		false: "[] [10.244.180.7/32 fd00:180::7/128]"} {
		cfg, snap := beside(t, podnetwork)
		l, ok, problems := localOf(cfg, snap, "n1")
		if got := fmt.Sprint(l.PodCIDRs, l.OwnPodCIDRs); !ok || len(problems) > 0 || got != want {
			t.Errorf("with podnetwork.enabled %v: %s, want %s; %v", podnetwork, got, want, problems)
		}
		if kinds := localKinds(cfg); (kinds&model.PodKind != 0) == podnetwork {
			t.Errorf("with podnetwork.enabled %v: kinds %v", podnetwork, kinds)
		}
	}
}

// A node with an ExternalIP alone has that for its address, as for Kubernetes.
func TestANodeWithAnExternalIPAlone(t *testing.T) {
	cfg, snap := beside(t, true)
	l, ok, problems := localOf(cfg, snap, "n3")
	if got := fmt.Sprint(l.NodeIPs); !ok || len(problems) > 0 || got != "[203.0.113.13]" {
		t.Errorf("node ports at %s, %v", got, problems)
	}
	p := &dns.Placement{Node: "n3", Service: agent.ClusterDNS()}
	place, _, _ := p.Plan(snap, agent.ClusterDNS())
	if got := fmt.Sprint(place.Nodes); got != "[203.0.113.13]" {
		t.Errorf("DNS listens at %s", got)
	}
	for _, want := range []string{"203.0.113.13/32", "203.0.113.12/32", "192.0.2.12/32"} {
		if !strings.Contains(fmt.Sprint(place.Clients), want) {
			t.Errorf("%s is none of the clients %v", want, place.Clients)
		}
	}
}
