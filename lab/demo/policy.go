package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// policyWorld contains the pods of the examples: frontend, backend and database in the namespace production, a stranger
// in another one, and one with the label team=platform. Every pod serves 8080 and 5432.
const policyWorld = `apiVersion: v1
kind: Namespace
metadata: {name: production}
---
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere}
---
apiVersion: v1
kind: Namespace
metadata: {name: platform, labels: {team: platform}}
---
apiVersion: v1
kind: Service
metadata: {name: backend, namespace: production}
spec:
  type: NodePort
  selector: {app: backend}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: database, namespace: production}
spec:
  selector: {app: database}
  ports: [{port: 5432}]
`

const policyPod = `---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {app: %[2]s}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: web, image: %[3]s, args: [netexec, --http-port=8080, --udp-port=8080]}
  - {name: sql, image: %[3]s, args: [netexec, --http-port=5432, --udp-port=-1]}
`

// The example policies, with other names of namespaces.
const (
	denyAll = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: deny-all
  namespace: production
spec:
  podSelector: {}
  policyTypes:
  - Ingress
`
	frontendToBackend = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-frontend-to-backend
  namespace: production
spec:
  podSelector:
    matchLabels:
      app: backend
  policyTypes:
  - Ingress
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: frontend
    ports:
    - protocol: TCP
      port: 8080
`
	fromPlatform = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-platform
  namespace: production
spec:
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector:
        matchLabels:
          team: platform
`
	databaseAndDNS = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: database-and-dns
  namespace: production
spec:
  podSelector:
    matchLabels:
      app: backend
  policyTypes:
  - Egress
  egress:
  - to:
    - podSelector:
        matchLabels:
          app: database
    ports:
    - protocol: TCP
      port: 5432
  - to:
    - namespaceSelector:
        matchLabels:
          name: kube-system
    ports:
    - protocol: UDP
      port: 53
`
)

// A try is one probe with its expected result.
type try struct {
	from string // NAMESPACE/POD, or "outside"
	to   string // ADDRESS:PORT or NAME:PORT
	pass bool
}

func (y try) String() string {
	verb := "does not reach"
	if y.pass {
		verb = "reaches"
	}
	return y.from + " " + verb + " " + y.to
}

// cast creates the pods, and returns their addresses by name.
func (t *Tour) cast(ctx context.Context) (map[string]string, error) {
	world := policyWorld
	names := []string{"production/frontend", "production/backend", "production/database", "elsewhere/stranger",
		"platform/operator"}
	for _, n := range names {
		ns, name, _ := strings.Cut(n, "/")
		world += fmt.Sprintf(policyPod, ns, name, t.image())
	}
	if err := t.apply(ctx, world); err != nil {
		return nil, err
	}
	ips := map[string]string{}
	for _, n := range names {
		ns, name, _ := strings.Cut(n, "/")
		if _, err := t.kubectl(ctx, "-n", ns, "wait", "--for=condition=Ready", "pod/"+name,
			"--timeout=60s"); err != nil {
			return nil, err
		}
		ip, err := t.one(ctx, "{.status.podIP}", "-n", ns, "pod", name)
		if err != nil {
			return nil, err
		}
		ips[name] = ip
	}
	return ips, nil
}

// tries repeats probes until all have the expected result: a policy takes a moment to reach every node.
func (t *Tour) tries(ctx context.Context, list ...try) error {
	return eventually(ctx, func() error {
		for _, y := range list {
			if err := t.try(ctx, y); err != nil {
				return err
			}
		}
		return nil
	})
}

// try returns an error if a probe does not have its expected result. A denied packet is dropped, so the client gets no
// answer; anything else is another fault.
func (t *Tour) try(ctx context.Context, y try) error {
	var out string
	var err error
	silent := "TIMEOUT"
	if y.from == "outside" {
		silent = "exit status 28"
		out, err = t.at(ctx, "outside", "curl", "-sS", "-m", "1", "http://"+y.to+"/hostname")
	} else {
		ns, name, _ := strings.Cut(y.from, "/")
		out, err = t.kubectl(ctx, "-n", ns, "exec", name, "-c", "web", "--", "/agnhost", "connect",
			"--timeout=1s", y.to)
	}
	switch {
	case y.pass && err != nil:
		return fmt.Errorf("want %s: %w: %s", y, err, out)
	case !y.pass && err == nil:
		return fmt.Errorf("want %s: it does", y)
	case !y.pass && !strings.Contains(err.Error()+out, silent):
		return fmt.Errorf("want %s: not silence but %w: %s", y, err, out)
	}
	return nil
}

// policed applies the example policies, one after the other, and checks what each allows and denies.
func policed(ctx context.Context, t *Tour) error {
	ip, err := t.cast(ctx)
	if err != nil {
		return err
	}
	var ports []string
	ports, err = t.fields(ctx, "{.spec.ports[0].nodePort} {.spec.clusterIP}", "-n", "production", "service", "backend")
	if err != nil || len(ports) != 2 {
		return fmt.Errorf("service backend has %v: %w", ports, err)
	}
	node, err := t.one(ctx, "{.spec.nodeName}", "-n", "production", "pod", "backend")
	if err != nil {
		return err
	}
	nodes, err := t.fields(ctx, `{range .items[*]}{.metadata.name}={.status.addresses[0].address} {end}`, "nodes")
	if err != nil {
		return err
	}
	// The external client uses a node without a backend, so that policy is applied behind two nodes.
	i := slices.IndexFunc(nodes, func(s string) bool { return !strings.HasPrefix(s, node+"=") })
	if i < 0 {
		return fmt.Errorf("nodes %v", nodes)
	}
	_, other, _ := strings.Cut(nodes[i], "=")
	at := func(name, port string) string { return bracket(ip[name]) + ":" + port }
	outside := bracket(other) + ":" + ports[0]
	vip := bracket(ports[1]) + ":80"
	frontend, backend, database, stranger, operator := "production/frontend", "production/backend",
		"production/database", "elsewhere/stranger", "platform/operator"
	steps := []struct {
		say, yaml, name string
		tries           []try
	}{
		{"no policy", "", "", []try{
			{frontend, at("backend", "8080"), true}, {stranger, at("backend", "5432"), true}, {stranger, vip, true},
			{"outside", outside, true}}},
		{"deny-all", denyAll, "deny-all", []try{
			{frontend, at("backend", "8080"), false}, {stranger, vip, false}, {"outside", outside, false},
			{backend, at("stranger", "8080"), true}, {stranger, at("operator", "8080"), true}}},
		{"allow-frontend-to-backend", frontendToBackend, "", []try{
			{frontend, at("backend", "8080"), true}, {frontend, vip, true}, {database, at("backend", "8080"), false},
			{frontend, at("backend", "5432"), false}, {frontend, at("database", "5432"), false},
			{"outside", outside, false}}},
		{"allow-platform", fromPlatform, "", []try{
			{operator, at("backend", "5432"), true}, {operator, at("database", "8080"), true},
			{stranger, at("database", "8080"), false}}},
		{"database-and-dns", databaseAndDNS, "", []try{
			{backend, at("stranger", "8080"), false}, {backend, at("database", "8080"), false}}},
	}
	for _, s := range steps {
		if s.yaml != "" {
			if err := t.apply(ctx, s.yaml); err != nil {
				return err
			}
		}
		if err := t.tries(ctx, s.tries...); err != nil {
			return fmt.Errorf("with %s: %w", s.say, err)
		}
	}
	// With egress to the database and DNS only: the database still denies ingress, so deny-all is removed for its part.
	if _, err := t.kubectl(ctx, "-n", "production", "delete", "networkpolicy", "deny-all",
		"allow-platform"); err != nil {
		return err
	}
	if err := t.tries(ctx, try{backend, at("database", "5432"), true}, try{backend, at("database", "8080"), false},
		try{backend, at("frontend", "8080"), false}); err != nil {
		return err
	}
	return t.resolves(ctx)
}

// resolves checks that the backend can resolve a name once its policy's namespaceSelector finds kube-system, and not
// before.
func (t *Tour) resolves(ctx context.Context) error {
	ask := func() error {
		out, err := t.kubectl(ctx, "-n", "production", "exec", "backend", "-c", "web", "--", "dig", "+short",
			"+tries=1", "+time=1", "database.production.svc.cluster.local")
		if err == nil && strings.TrimSpace(out) == "" {
			err = errors.New("no answer")
		}
		return err
	}
	if _, err := t.kubectl(ctx, "label", "namespace", "kube-system", "name-"); err != nil {
		return err
	}
	if err := eventually(ctx, func() error {
		if ask() == nil {
			return errors.New("the backend resolves names, though no policy allows it")
		}
		return nil
	}); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "label", "namespace", "kube-system", "name=kube-system"); err != nil {
		return err
	}
	return eventually(ctx, ask)
}

// explained asks the agent about an allowed and a denied packet.
func explained(ctx context.Context, t *Tour) error {
	agents, err := t.agents(ctx)
	if err != nil || len(agents) == 0 {
		return fmt.Errorf("agents %v: %w", agents, err)
	}
	explain := func(from, to string) (string, error) {
		return t.kubectl(ctx, "-n", "kube-system", "exec", agents[0], "-c", "agent", "--", "/wayleave", "explain",
			"policy", from, to)
	}
	out, err := explain("production/frontend", "production/backend:8080/TCP")
	if err := errors.Join(err, want(out, "allowed", "allow-frontend-to-backend")); err != nil {
		return err
	}
	out, err = explain("production/backend", "elsewhere/stranger:8080/TCP")
	if err == nil {
		return fmt.Errorf("a forbidden packet is explained as allowed: %s", out)
	}
	return want(err.Error()+out, "denied", "database-and-dns")
}

// dropped looks for dropped packets in the status and metrics of the node.
func dropped(ctx context.Context, t *Tour) error {
	node, err := t.one(ctx, "{.spec.nodeName}", "-n", "production", "pod", "backend")
	if err != nil {
		return err
	}
	agent, err := t.one(ctx, "{.items[*].metadata.name}", "-n", "kube-system", "pods", "-l",
		"app.kubernetes.io/name=wayleave", "--field-selector", "spec.nodeName="+node)
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		out, err := t.kubectl(ctx, "-n", "kube-system", "exec", agent, "-c", "agent", "--", "/wayleave",
			"status", "--policies")
		return errors.Join(err, want(out, "production/backend", "database-and-dns", "Egress"))
	})
}

// newcomer starts pods that first of all send what a policy forbids: not one packet may arrive.
func newcomer(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, fmt.Sprintf(newcomerYAML, t.image())); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		_, _ = t.kubectl(ctx, "-n", "elsewhere", "delete", "job", "newcomer", "--ignore-not-found", "--wait=false")
	}()
	_, err := t.kubectl(ctx, "-n", "elsewhere", "wait", "--for=condition=Complete", "job/newcomer", "--timeout=150s")
	return err
}

// newcomerYAML are pods that must not reach the stranger: they try as soon as they run.
const newcomerYAML = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: newcomers, namespace: elsewhere}
spec:
  podSelector: {matchLabels: {job-name: newcomer}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
---
apiVersion: v1
kind: Service
metadata: {name: stranger, namespace: elsewhere}
spec:
  selector: {app: stranger}
  ports: [{port: 8080}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: newcomer, namespace: elsewhere}
spec:
  completions: 9
  parallelism: 9
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: try
        image: %[1]s
        command:
        - sh
        - -c
        - |
          n=0
          while [ $n -lt 3 ]; do
            said=$(/agnhost connect --timeout=500ms stranger.elsewhere.svc.cluster.local:8080 2>&1) && exit 1
            echo "$said"
            case $said in *TIMEOUT*) n=$((n+1)); esac
          done
`

// closed runs fn while a pod repeatedly tries what a policy forbids: it must never pass.
func (t *Tour) closed(ctx context.Context, fn func() error) error {
	ip, err := t.cast(ctx)
	if err == nil {
		err = t.apply(ctx, frontendToBackend)
	}
	if err != nil {
		return err
	}
	target := bracket(ip["backend"]) + ":5432"
	if err := t.tries(ctx, try{"elsewhere/stranger", target, false}); err != nil {
		return err
	}
	inside := func(script string) []string {
		return []string{"-n", "elsewhere", "exec", "stranger", "-c", "web", "--", "sh", "-c", script}
	}
	if _, err := t.kubectl(ctx, inside("rm -f /tmp/stop")...); err != nil {
		return err
	}
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	side := &Tour{Lab: t.Lab, Kubectl: t.Kubectl, Kubeconfig: t.Kubeconfig}
	go func() {
		out, err := side.kubectl(ctx, inside("while [ ! -e /tmp/stop ]; do /agnhost connect --timeout=300ms "+target+
			" 2>/dev/null && echo PASSED; echo tried; done")...)
		done <- result{out, err}
	}()
	err = fn()
	_, stop := t.kubectl(ctx, inside("touch /tmp/stop")...)
	r := <-done
	if err := errors.Join(err, stop, r.err); err != nil {
		return err
	}
	if tried, passed := strings.Count(r.out, "tried"), strings.Count(r.out, "PASSED"); passed > 0 || tried < 10 {
		return fmt.Errorf("of %d connections that policy forbids %d passed", tried, passed)
	}
	return nil
}

// idleYAML is a policy without effect: no pod has its label, and no pod of its rule has the port.
const idleYAML = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: idle, namespace: elsewhere}
spec:
  podSelector: {matchLabels: {app: nobody}}
  ingress: [{ports: [{port: 80}]}]
`

// idle checks that an Event reports policies without effect.
func idle(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, idleYAML); err != nil {
		return err
	}
	err := eventually(ctx, func() error {
		out, err := t.kubectl(ctx, "-n", "elsewhere", "get", "events", "--field-selector", "involvedObject.name=idle",
			"-o", "jsonpath={.items[*].message}")
		return errors.Join(err, want(out, "spec.podSelector"))
	})
	_, gone := t.kubectl(ctx, "-n", "elsewhere", "delete", "networkpolicy", "idle")
	return errors.Join(err, gone)
}
