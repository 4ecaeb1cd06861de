package networkpolicy_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/source/manifest"
)

// What the small world has not: nodes, pods with the node's network, addresses that two
// pods claim, leases, and kube-dns.
const corners = `apiVersion: v1
kind: Node
metadata: {name: node1}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
spec: {podCIDRs: [10.244.1.0/29, 10.244.1.8/30]}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: closed, namespace: a, labels: {app: closed}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.244.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: a, labels: {app: client}}
spec: {nodeName: node2, hostNetwork: true}
status: {podIPs: [{ip: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: hostclosed, namespace: a, labels: {app: closed}}
spec: {nodeName: node2, hostNetwork: true}
status: {podIPs: [{ip: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ended, namespace: a, labels: {app: client}}
spec: {nodeName: node2}
status: {phase: Succeeded, podIPs: [{ip: 10.244.1.7}]}
---
apiVersion: v1
kind: Pod
metadata: {name: failed, namespace: a, labels: {app: client}, creationTimestamp: "2026-01-03T00:00:00Z"}
spec: {nodeName: node2}
status: {phase: Failed, podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: heir, namespace: a, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {nodeName: node2}
status: {phase: Running, podIPs: [{ip: 10.244.1.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: leaving, namespace: a, labels: {app: client}, deletionTimestamp: "2026-01-02T00:00:00Z"}
spec: {nodeName: node2}
status: {phase: Running, podIPs: [{ip: 10.244.1.4}]}
---
apiVersion: v1
kind: Pod
metadata: {name: closedleaving, namespace: a, labels: {app: closed}, deletionTimestamp: "2026-01-02T00:00:00Z"}
spec: {nodeName: node2}
status: {phase: Running, podIPs: [{ip: 10.244.1.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: a, labels: {app: client}, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {nodeName: node2}
status: {podIPs: [{ip: 10.244.1.8}]}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: a, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {nodeName: node2}
status: {podIPs: [{ip: 10.244.1.8}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: a, labels: {app: client}}
spec: {nodeName: node2}
status: {podIPs: [{ip: 10.244.1.9}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Node
metadata: {name: node3}
spec: {podCIDRs: [10.244.1.8/29, 10.244.3.0/24]}
---
apiVersion: v1
kind: Pod
metadata: {name: before, namespace: a}
spec: {nodeName: node3}
status: {podIPs: [{ip: 10.244.1.14}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: a}
spec:
  podSelector: {matchLabels: {app: closed}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
  - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}},
      podSelector: {matchLabels: {app.kubernetes.io/component: ingress}}}]
    ports: [{port: 80}]
  egress:
  - to: [{podSelector: {matchLabels: {app: client}}}]
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}},
      podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: dns-tcp}, {port: 53, protocol: UDP}]
`

func TestCornersThatTheSmallWorldHasNot(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if problems, err := manifest.Read(store, "x.yaml", strings.NewReader(corners)); err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	v := store.Snapshot()
	nowhere := networkpolicy.NodeInputs{DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}
	ingress := networkpolicy.NodeInputs{Node: "node1", Ingress: true}
	leases := networkpolicy.NodeInputs{Node: "node1", Pods: map[netip.Addr]model.Name{
		netip.MustParseAddr("10.244.0.1"): {Namespace: "a", Name: "closed"},
		netip.MustParseAddr("10.244.0.5"): {Namespace: "a", Name: "unseen"},
		netip.MustParseAddr("10.244.0.6"): {Namespace: "b", Name: "unseen"},
		netip.MustParseAddr("10.244.1.9"): {Namespace: "a", Name: "closed"}}}
	for _, tc := range []struct {
		why      string
		local    networkpolicy.NodeInputs
		from, to string
		port     uint16
		want     string // what Verdict says of itself, both halves and whether the two are isolated
	}{
		{"a pod that is selected may", nowhere, "10.244.1.9", "10.244.0.1", 80, "true egress open, ingress allowed"},
		{"the own node always may", nowhere, "192.168.0.1", "10.244.0.1", 80,
			"true a pod and its own node always reach each other"},
		{"and is reached", nowhere, "10.244.0.1", "192.168.0.1", 80,
			"true a pod and its own node always reach each other"},
		{"another node is a plain address, also with a pod on it that has the label", nowhere, "192.168.0.2",
			"10.244.0.1", 80, "false egress open, ingress denied"},
		{"likewise as a receiver", nowhere, "10.244.0.1", "192.168.0.2", 80, "false egress denied, ingress open"},
		{"a pod with the node's network is never isolated", nowhere, "10.244.1.9", "192.168.0.2", 80,
			"true a pod and its own node always reach each other"},
		{"an address of a pod that has ended is nobody's", nowhere, "10.244.1.7", "10.244.0.1", 80,
			"false egress open, ingress denied"},
		{"who has the address of a pod that has failed inherits nothing, though that is younger", nowhere, "10.244.1.5",
			"10.244.0.1", 80, "false egress open, ingress denied"},
		{"and is not shut in by it", nowhere, "192.0.2.1", "10.244.1.5", 80, "true egress open, ingress open"},
		{"a pod that is told to end is a peer until it has", nowhere, "10.244.1.4", "10.244.0.1", 80,
			"true egress open, ingress allowed"},
		{"and is isolated until then", nowhere, "192.0.2.1", "10.244.1.3", 80, "false egress open, ingress denied"},
		{"in both directions", nowhere, "10.244.1.3", "192.0.2.1", 80, "false egress denied, ingress open"},
		{"of two that claim an address the youngest has it", nowhere, "10.244.1.8", "10.244.0.1", 80,
			"false egress open, ingress denied"},
		{"a pod reaches itself", nowhere, "10.244.0.1", "10.244.0.1", 80, "true a pod always reaches itself"},
		{"kube-dns by name of its port", nowhere, "10.244.0.1", "10.96.0.10", 53, "true egress allowed, ingress open"},
		{"kube-dns at another port", nowhere, "10.244.0.1", "10.96.0.10", 54, "false egress denied, ingress open"},
		{"the ingress proxy of another node by its labels", ingress, "10.244.3.254", "10.244.0.1", 80,
			"true egress open, ingress allowed"},
		{"at another port", ingress, "10.244.3.254", "10.244.0.1", 81, "false egress open, ingress denied"},
		{"an address of a proxy that a pod still has is the pod's", ingress, "10.244.1.14", "10.244.0.1", 80,
			"false egress open, ingress denied"},
		{"another address of the network is nobody's", ingress, "10.244.3.253", "10.244.0.1", 80,
			"false egress open, ingress denied"},
		{"nobody's with ingress off", nowhere, "10.244.3.254", "10.244.0.1", 80, "false egress open, ingress denied"},
		{"and nobody sends to a proxy", ingress, "10.244.0.1", "10.244.3.254", 80, "false egress denied, ingress open"},
		{"an address that is not kube-dns'", leases, "10.244.0.1", "10.96.0.10", 53,
			"false egress denied, ingress open"},
		{"a leased address whose pod is not known is closed", leases, "10.244.0.5", "192.0.2.1", 80,
			"false egress denied, ingress open"},
		{"both ways", leases, "192.0.2.1", "10.244.0.5", 80, "false egress open, ingress denied"},
		{"but open where no policy is", leases, "192.0.2.1", "10.244.0.6", 80, "true egress open, ingress open"},
		{"and it is no peer", leases, "10.244.0.5", "10.244.0.1", 80, "false egress denied, ingress denied"},
		{"a lease is believed more than the API", leases, "10.244.1.9", "10.244.0.1", 80,
			"false egress denied, ingress denied"},
	} {
		from, to := networkpolicy.Identify(v, tc.local, netip.MustParseAddr(tc.from)),
			networkpolicy.Identify(v, tc.local, netip.MustParseAddr(tc.to))
		verdict := networkpolicy.Evaluate(v, from, to, model.TCP, tc.port)
		got := fmt.Sprintf("%v %s", verdict.Allowed, verdict.Always)
		if verdict.Always == "" {
			got = fmt.Sprintf("%v egress %s, ingress %s", verdict.Allowed, word(verdict.Egress), word(verdict.Ingress))
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.why, got, tc.want)
		}
	}
}

func word(h networkpolicy.Half) string {
	switch {
	case !h.Isolated:
		return "open"
	case h.Allowed:
		return "allowed"
	}
	return "denied"
}
