package explain

import (
	"strings"
	"testing"

	"wayleave.dev/model"
	"wayleave.dev/source/manifest"
)

const cluster = `apiVersion: v1
kind: Pod
metadata: {name: frontend, labels: {app: frontend}}
spec: {nodeName: node1}
status: {podIPs: [{ip: 10.244.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: backend, labels: {app: backend}}
spec: {nodeName: node2}
status: {podIPs: [{ip: 10.244.1.1}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: starts}
spec: {nodeName: node1, hostNetwork: true}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: backend}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - from: [{ipBlock: {cidr: 10.244.0.0/24}}]
    ports: [{port: 81}]
  - from: [{podSelector: {matchLabels: {app: frontend}}}]
    ports: [{port: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: backend}}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: names}
spec:
  podSelector: {matchLabels: {app: backend}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}},
      podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: dns, protocol: UDP}]
`

func snapshot(t *testing.T) model.Snapshot {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if problems, err := manifest.Read(store, "x.yaml", strings.NewReader(cluster)); err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	return store.Snapshot()
}

func TestPolicyInWords(t *testing.T) {
	v := snapshot(t)
	for _, tc := range []struct {
		from, to string
		allowed  bool
		want     string
	}{
		{"default/frontend", "pod/default/backend:8080/TCP", true,
			`allowed: pod default/frontend (10.244.0.1) to pod default/backend (10.244.1.1), TCP 8080
  egress: no policy isolates pod default/frontend: open
  ingress: pod default/backend is isolated by default/backend, default/deny, and a rule allows this
    default/backend spec.ingress[1]: allows this
allowed: pod default/frontend (fd00::1) to pod default/backend (fd00::2), TCP 8080
  egress: no policy isolates pod default/frontend: open
  ingress: pod default/backend is isolated by default/backend, default/deny, and a rule allows this
    default/backend spec.ingress[1]: allows this
`},
		{"10.244.0.1", "default/backend:80", false,
			`denied: pod default/frontend (10.244.0.1) to pod default/backend (10.244.1.1), TCP 80
  egress: no policy isolates pod default/frontend: open
  ingress: pod default/backend is isolated by default/backend, default/deny, and no rule allows this
    default/backend spec.ingress[0]: is for this peer, but not for this port
    default/backend spec.ingress[1]: is for this peer, but not for this port
    default/deny has no rules for ingress
`},
		{"2001:db8::1", "[fd00::2]:8080/udp", false, `denied: 2001:db8::1 to pod default/backend (fd00::2), UDP 8080
  egress: 2001:db8::1 is not a pod of the pod network, so no policy applies to it
  ingress: pod default/backend is isolated by default/backend, default/deny, and no rule allows this
    default/backend spec.ingress[0]: is not for this peer
    default/backend spec.ingress[1]: is not for this peer
    default/deny has no rules for ingress
`},
		{"192.168.0.2", "default/backend:80/TCP", true,
			`allowed: node node2 (192.168.0.2) to pod default/backend (10.244.1.1), TCP 80
  a pod and its own node always reach each other, regardless of policies
`},
		{"10.244.1.1", "10.96.0.10:53/UDP", true,
			`allowed: pod default/backend (10.244.1.1) to kube-dns (10.96.0.10), UDP 53
  egress: pod default/backend is isolated by default/names, and a rule allows this
    default/names spec.egress[0]: allows this
  ingress: 10.96.0.10 is not a pod of the pod network, so no policy applies to it
`},
		{"10.244.1.254", "default/backend:8080/TCP", false,
			`denied: the ingress proxy of node node2 (10.244.1.254) to pod default/backend (10.244.1.1), TCP 8080
  egress: 10.244.1.254 is not a pod of the pod network, so no policy applies to it
  ingress: pod default/backend is isolated by default/backend, default/deny, and no rule allows this
    default/backend spec.ingress[0]: is not for this peer
    default/backend spec.ingress[1]: is not for this peer
    default/deny has no rules for ingress
`},
		// One family passes and the other does not: denied, since a client may take either.
		{"default/frontend", "default/backend:81/TCP", false, ""},
	} {
		q, err := ParseQuestion(tc.from, tc.to, "")
		if err != nil {
			t.Fatal(err)
		}
		text, allowed, err := Policy(v, q)
		if err != nil || allowed != tc.allowed || tc.want != "" && text != tc.want {
			t.Errorf("%s %s: allowed %v, %v\n%s", tc.from, tc.to, allowed, err, text)
		}
	}
}

func TestQuestionsThatHaveNoAnswer(t *testing.T) {
	v := snapshot(t)
	for _, tc := range []struct{ from, to, want string }{
		{"frontend", "default/backend:80", `FROM: "frontend" is neither a pod`},
		{"a/b/c", "default/backend:80", `FROM: "a/b/c" is neither a pod`},
		{"svc/a/b", "default/backend:80", `FROM: "svc/a/b" is a svc, and policies see its pods only`},
		{"fe80::1%eth0", "default/backend:80", "has a zone"},
		{"default/frontend", "default/backend", "write it as default/backend:80/TCP"},
		{"default/frontend", "default/backend:web", `"web" is not a port`},
		{"default/frontend", "default/backend:0", `"0" is not a port`},
		{"default/frontend", "default/backend:80/ICMP", `"ICMP" is not a protocol`},
		{"default/frontend", "default/other:80", "TO: pod default/other does not exist"},
		{"default/starts", "default/backend:80", "FROM: pod default/starts has no address yet"},
		{"default/frontend", "10.96.0.20:80", "TO: 10.96.0.20 is the address of Service default/backend"},
		{"192.0.2.1", "[fd00::2]:80", "no address family in common"},
	} {
		q, err := ParseQuestion(tc.from, tc.to, "")
		if err == nil {
			_, _, err = Policy(v, q)
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v, want %s", tc.from, tc.to, err, tc.want)
		}
	}
}
