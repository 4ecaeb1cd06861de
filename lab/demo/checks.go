package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func chapters() []chapter {
	return []chapter{
		{"The cluster: its only network is Wayleave", []check{
			{name: "nodes", say: "every node is Ready", run: nodesReady, within: 2 * time.Minute},
			{name: "rollout", say: "the DaemonSet wayleave is rolled out", run: rollout, within: 2 * time.Minute},
			{name: "status", say: "`wayleave status` finds nothing wrong on any node", run: statusFine,
				within: time.Minute},
			{name: "listeners", say: "every listening socket of each node is in the table of docs/security.md",
				run: listenersKnown, within: time.Minute},
			{name: "status-cluster", say: "`wayleave status` from outside of the nodes shows all of them in one table",
				run: statusOfAll, within: time.Minute},
			{name: "check", say: "`wayleave check` of the cluster, and of a node as root, finds no failure",
				run: checked, within: time.Minute},
			{name: "support-bundle", say: "`wayleave support-bundle` is complete, and has the state of each node",
				run: bundled, within: 2 * time.Minute},
			{name: "connectivity-broken",
				say: "`wayleave test connectivity` names what a policy breaks; after ^C it leaves nothing",
				run: disconnected, within: 4 * time.Minute, long: true},
			{name: "uninstall-cluster",
				say: "`wayleave uninstall --cluster` leaves nothing on nodes and in the API but what it names",
				run: uninstalled, within: 5 * time.Minute, apart: true},
		}},
		{"A Service", []check{
			{name: "create", say: "kubectl create deployment, kubectl expose", run: createBackend,
				within: 2 * time.Minute},
			{name: "get-services", say: "kubectl get services, describe service, get endpoints",
				run: describeBackend, within: 0},
			{name: "busybox", say: "busybox: nslookup backend; wget -O- http://backend", run: busybox,
				within: 2 * time.Minute},
			{name: "every-node", say: "ClusterIP, backend, backend.default and the full name, from a pod on every node",
				run: everyNode, within: 2 * time.Minute},
			{name: "host", say: "the ClusterIP from the nodes themselves", run: fromHosts, within: 0},
			{name: "spread", say: "connections are spread evenly over 3 pods", run: spread, within: 0},
			{name: "refuse", say: "a Service without endpoints refuses at once", run: refuses, within: 0},
			{name: "replace", say: "a backend killed and replaced under requests: none lost once its endpoint is gone",
				run: replaced, within: 2 * time.Minute},
		}},
		{"NodePort, headless, StatefulSet, ExternalName", []check{
			{name: "nodeport", say: "NodePort from outside, at a node that has no backend", run: nodePort,
				within: 2 * time.Minute},
			{name: "headless", say: "a headless Service answers with all pod addresses", run: headless,
				within: 2 * time.Minute},
			{name: "statefulset", say: "mysql-0.mysql and the other pods of the StatefulSet", run: statefulSet,
				within: 2 * time.Minute},
			{name: "externalname", say: "ExternalName is a CNAME", run: externalName, within: 0},
		}},
		{"DNS as pods see it", []check{
			{name: "resolvconf", say: "/etc/resolv.conf of a pod", run: resolvConf, within: 0},
			{name: "autopath", say: "google.com with ndots:5 is answered at the first step of the walk",
				run: firstStep, within: 0},
			{name: "ndots5", say: "google.com with ndots:5 takes four steps in a pod with its own search list",
				run: fourSteps, within: 0},
			{name: "ndots1", say: "google.com with ndots:1 takes one step", run: oneStep, within: 0},
			{name: "dns-query", say: "`wayleave dns query --as` shows each step and its source",
				run: shownSteps, within: 0},
		}},
		{"The pod network", []check{
			{name: "pod-to-pod", say: "pod to pod across nodes: the source address seen is the pod's own",
				run: podToPod, within: 0},
			{name: "pod-to-outside", say: "a pod reaches external hosts with its node's address",
				run: podToOutside, within: 0},
		}},
		{"LoadBalancer without a cloud", []check{
			{name: "loadbalancer",
				say: "an AddressPool, type LoadBalancer: kubectl get svc shows the address, which answers " +
					"external clients",
				run: balanced, within: time.Minute},
			{name: "lb-local", say: "externalTrafficPolicy Local: the node with the endpoint answers, and the " +
				"endpoint sees the client's address", run: keepsClient, within: time.Minute},
			{name: "connectivity", say: "`wayleave test connectivity` finds no fault, and leaves nothing",
				run: connected, within: 3 * time.Minute},
			{name: "lb-spread", say: "90 addresses are answered evenly by the nodes", run: spreads,
				within: 2 * time.Minute, long: true},
			{name: "lb-upgrade",
				say: "a rollout on all nodes: the address stays with its node, and is answered all the time",
				run: stays, within: 2 * time.Minute, long: true},
			{name: "lb-failover",
				say: "the owner's agent killed, terminated, its node disconnected: another node answers within 2 s",
				run: moves, within: 5 * time.Minute},
		}},
		{"NetworkPolicy", []check{
			{name: "policy", say: "policies: open, deny-all, frontend to backend:8080, by namespace, " +
				"egress to database and DNS", run: policed, within: 3 * time.Minute},
			{name: "policy-explain", say: "`wayleave explain policy` says which policy allows or denies",
				run: explained, within: 0},
			{name: "policy-drops", say: "`wayleave status --policies` counts what was dropped, by pod and policy",
				run: dropped, within: 0},
			{name: "policy-newcomer",
				say: "pods that send at once: nothing that policy forbids passes", run: newcomer,
				within: 3 * time.Minute},
		}},
		{"Ingress", []check{
			{name: "ingress", say: "an Ingress, from outside: app1 and app2 by host and path",
				run: routed, within: 3 * time.Minute},
			{name: "ingress-tls",
				say: "kubectl create secret tls: https by name, http redirects to it, no other host gets " +
					"the certificate",
				run: encrypted, within: time.Minute},
			{name: "ingress-upgrade", say: "a rollout on all nodes under requests through the Ingress: 0 lost",
				run: routedOn, within: 3 * time.Minute, long: true},
		}},
		{"Wrong input", []check{
			{name: "policy-event", say: "a NetworkPolicy that selects nothing gets an Event that names the field",
				run: idle, within: 2 * time.Minute},
			{name: "bad-event",
				say: "an invalid EndpointSlice gets an Event that names the field, and affects no other",
				run: badSlice, within: 0},
		}},
		{"Rights of accounts", []check{
			{name: "rights", say: "`kubectl auth can-i --list` of agents and writer; an agent's token writes the " +
				"Lease of its own node and nothing else", run: limited, within: 2 * time.Minute},
			{name: "writer", say: "the elected writer is deleted: the other one gives a Service its address, and the " +
				"heartbeat key stays", run: rewritten, within: 2 * time.Minute},
			{name: "upgrade-from",
				say: "an earlier version is upgraded to this one under the loss meter: 0 lost, and no policy opens",
				run: upgraded, within: 4 * time.Minute, apart: true},
			{name: "downgrade-to", say: "and back to the earlier version: 0 lost, and no policy opens", run: downgraded,
				within: 4 * time.Minute, apart: true},
		}},
		{"Restarts and upgrades", []check{
			{name: "kill-agent",
				say: "every agent killed with SIGKILL under the loss meter: 0 lost, and no policy opens",
				run: killAgents, within: 3 * time.Minute},
			{name: "dns-kill", say: "the DNS server of every node killed with SIGKILL, one after the other, under " +
				"the loss meter: 0 unanswered after one retry", run: killDNS, within: 3 * time.Minute, long: true},
			{name: "dns-api-loss", say: "the API server hangs, and the meter's node loses its DNS server and its " +
				"agent at once: 0 unanswered after one retry", run: loseAPI, within: 3 * time.Minute, long: true},
			{name: "upgrade", say: "a rollout on all nodes to VXLAN routing and back under the loss meter: " +
				"0 lost, and no policy opens", run: upgrade, within: 4 * time.Minute},
			{name: "modes", say: "a rollout on all nodes to mode iptables, `iptables -t nat -L KUBE-SERVICES`, " +
				"to ebpf, and back to nftables under the loss meter: 0 lost, and no policy opens", run: modes,
				within: 4 * time.Minute, long: true},
			{name: "refuse-mode",
				say: "an impossible mode is refused by name, and the previous agents continue under the loss " +
					"meter: 0 lost", run: refuseMode, within: 3 * time.Minute, long: true},
		}},
		handovers(),
		withKubeadm(),
	}
}

func nodesReady(ctx context.Context, t *Tour) error {
	_, err := t.kubectl(ctx, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout=100s")
	return err
}

func rollout(ctx context.Context, t *Tour) error {
	_, err := t.kubectl(ctx, "-n", "kube-system", "rollout", "status", "daemonset/wayleave", "--timeout=100s")
	return err
}

// agents returns the wayleave pods.
func (t *Tour) agents(ctx context.Context) ([]string, error) {
	return t.fields(ctx, "{.items[*].metadata.name}", "-n", "kube-system", "pods", "-l",
		"app.kubernetes.io/name=wayleave")
}

func statusFine(ctx context.Context, t *Tour) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		pods, err := t.agents(ctx)
		if err != nil {
			return err
		}
		if len(pods) != len(nodes) { // also while an upgrade's surge pod exists
			return fmt.Errorf("%d agents on %d nodes", len(pods), len(nodes))
		}
		for _, p := range pods {
			out, err := t.kubectl(ctx, "-n", "kube-system", "exec", p, "-c", "agent", "--", "/wayleave", "status")
			if err := errors.Join(err, want(out, "mode: nftables", "nothing is wrong")); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		}
		return nil
	})
}

func (t *Tour) image() string { return "registry.k8s.io/e2e-test-images/agnhost:" + t.Agnhost }

// createBackend creates the example's Deployment and Service, and a client pod on every node.
func createBackend(ctx context.Context, t *Tour) error {
	steps := [][]string{
		{"create", "deployment", "backend", "--image=" + t.image(), "--replicas=3", "--port=8080", "--", "/agnhost",
			"netexec", "--http-port=8080", "--udp-port=8081"},
		{"expose", "deployment", "backend", "--port=80", "--target-port=8080"},
	}
	for _, s := range steps {
		if _, err := t.kubectl(ctx, s...); err != nil && !isThere(err) {
			return err
		}
	}
	if err := t.apply(ctx, fmt.Sprintf(clientYAML, t.image())); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "rollout", "status", "deployment/backend", "--timeout=100s"); err != nil {
		return err
	}
	_, err := t.kubectl(ctx, "rollout", "status", "daemonset/client", "--timeout=100s")
	return err
}

// isThere reports whether kubectl failed because an earlier tour created the object.
func isThere(err error) bool {
	return strings.Contains(err.Error(), "AlreadyExists") || strings.Contains(err.Error(), "already exists")
}

func describeBackend(ctx context.Context, t *Tour) error {
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "backend")
	if err != nil {
		return err
	}
	pods, err := t.podIPs(ctx, "app=backend")
	if err != nil {
		return err
	}
	out, err := t.kubectl(ctx, "get", "services")
	if err := errors.Join(err, want(out, "backend", ip, "80/TCP")); err != nil {
		return err
	}
	out, err = t.kubectl(ctx, "describe", "service", "backend")
	if err := errors.Join(err, want(out, ip, "TargetPort:")); err != nil {
		return err
	}
	out, err = t.kubectl(ctx, "get", "endpoints", "backend", "-o", "yaml")
	return errors.Join(err, want(out, pods...))
}

func (t *Tour) podIPs(ctx context.Context, selector string) ([]string, error) {
	l, err := t.fields(ctx, "{.items[*].status.podIP}", "pods", "-l", selector)
	slices.Sort(l)
	return l, err
}

func busybox(ctx context.Context, t *Tour) error {
	if _, err := t.kubectl(ctx, "run", "debug", "--image=busybox", "--image-pull-policy=IfNotPresent",
		"--restart=Never", "--", "sleep", "86400"); err != nil && !isThere(err) {
		return err
	}
	if _, err := t.kubectl(ctx, "wait", "--for=condition=Ready", "pod/debug", "--timeout=60s"); err != nil {
		return err
	}
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "backend")
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		// busybox queries every step of the search list and fails on the NXDOMAINs of the others, in any cluster; only
		// the presence of the address counts.
		out, _ := t.in(ctx, "debug", "nslookup", "backend")
		if err := want(out, ip); err != nil {
			return err
		}
		out, err := t.in(ctx, "debug", "wget", "-q", "-T", "5", "-O-", "http://backend/hostname")
		return errors.Join(err, want(out, "backend-"))
	})
}

func everyNode(ctx context.Context, t *Tour) error {
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "backend")
	if err != nil {
		return err
	}
	return fromEveryNode(func(ctx context.Context, t *Tour, pod string) error {
		for _, host := range []string{ip, "backend", "backend.default", "backend.default.svc.cluster.local"} {
			out, err := t.in(ctx, pod, "curl", "-sS", "-m", "5", "http://"+host+"/hostname")
			if err := errors.Join(err, want(out, "backend-")); err != nil {
				return fmt.Errorf("%s: %w", host, err)
			}
		}
		return nil
	})(ctx, t)
}

func (t *Tour) nodes(ctx context.Context) ([]string, error) {
	return t.fields(ctx, "{.items[*].metadata.name}", "nodes")
}

func fromHosts(ctx context.Context, t *Tour) error {
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "backend")
	if err != nil {
		return err
	}
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		out, err := t.at(ctx, n, "curl", "-sS", "-m", "5", "http://"+ip+"/hostname")
		if err := errors.Join(err, want(out, "backend-")); err != nil {
			return fmt.Errorf("on %s: %w", n, err)
		}
	}
	return nil
}

// spread sends 300 requests: with 3 equal pods, the probability that one gets fewer than 60 or more than 140 is below
// one in a million.
func spread(ctx context.Context, t *Tour) error {
	pods, err := t.clients(ctx)
	if err != nil {
		return err
	}
	out, err := t.in(ctx, pods[0], "sh", "-c",
		"for i in $(seq 300); do curl -sS -m 5 http://backend/hostname; echo; done")
	if err != nil {
		return err
	}
	count := map[string]int{}
	for _, name := range strings.Fields(out) {
		count[name]++
	}
	if len(count) != 3 {
		return fmt.Errorf("%d pods answered: %v", len(count), count)
	}
	for name, n := range count {
		if n < 60 || n > 140 {
			return fmt.Errorf("%s answered %d of 300: %v", name, n, count)
		}
	}
	return nil
}

func refuses(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, emptyYAML); err != nil {
		return err
	}
	return eventually(ctx, func() error {
		pods, err := t.clients(ctx)
		if err != nil {
			return err
		}
		out, err := t.in(ctx, pods[0], "curl", "-sS", "-m", "5", "-w", "%{time_connect} %{errormsg}",
			"http://empty.default.svc.cluster.local/")
		if err == nil {
			return errors.New("somebody answered")
		}
		// curl exits with 7 if the connection was refused, with 28 without an answer.
		m := regexp.MustCompile(`after (\d+) ms`).FindStringSubmatch(out)
		if !strings.Contains(err.Error(), "exit code 7") || m == nil || len(m[1]) > 3 {
			return fmt.Errorf("not refused at once but: %w (%s)", err, out)
		}
		return nil
	})
}

// replaced kills a backend under the loss meter. Until the endpoint controller notices, new connections may still go to
// the dead pod; from then on nothing may be lost. The pods need a readiness probe for that: without one the kubelet
// reports a pod as ready before its program listens, and its clients are refused.
func replaced(ctx context.Context, t *Tour) error {
	// The CPU request ensures that the measured pods get CPU while agents start.
	probe := `[{"op":"add","path":"/spec/template/spec/containers/0/readinessProbe",
		"value":{"periodSeconds":1,"httpGet":{"port":8080,"path":"/hostname"}}},
		{"op":"add","path":"/spec/template/spec/containers/0/resources","value":{"requests":{"cpu":"100m"}}}]`
	if _, err := t.kubectl(ctx, "patch", "deployment", "backend", "--type=json", "-p", probe); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "rollout", "status", "deployment/backend", "--timeout=100s"); err != nil {
		return err
	}
	victim, err := t.fields(ctx, "{.items[0].metadata.name} {.items[0].status.podIP}", "pods", "-l", "app=backend")
	if err != nil || len(victim) != 2 {
		return fmt.Errorf("victim %v: %w", victim, err)
	}
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "backend")
	if err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "delete", "pod", victim[0], "--grace-period=0", "--force"); err != nil {
		return err
	}
	err = eventually(ctx, func() error {
		addrs, err := t.fields(ctx, "{.items[*].endpoints[*].addresses[*]}", "endpointslices", "-l",
			"kubernetes.io/service-name=backend")
		if err == nil && slices.Contains(addrs, victim[1]) {
			err = errors.New("the endpoint still exists")
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := t.meter(ctx, 8*time.Second, nil, "http="+ip+":80/hostname"); err != nil {
		return err
	}
	_, err = t.kubectl(ctx, "rollout", "status", "deployment/backend", "--timeout=100s")
	return err
}

// meter runs the loss meter in a client pod for at least d, causes a disturbance meanwhile, and requires that nothing
// is lost. It ends after the disturbance, however long that takes.
func (t *Tour) meter(ctx context.Context, d time.Duration, disturb func() error, probes ...string) error {
	return t.measure(ctx, d, disturb, false, probes...)
}

// measure is meter; with retried, a query that is answered at its second try does not count as lost.
func (t *Tour) measure(ctx context.Context, d time.Duration, disturb func() error, retried bool,
	probes ...string) error {
	meter := []string{t.Kubectl, "exec", "-i", "deploy/meter", "--", "/lossmeter"}
	return t.measureBy(ctx, d, disturb, retried, meter, probes...)
}

// measureBy is measure with another loss meter: its command line.
func (t *Tour) measureBy(ctx context.Context, d time.Duration, disturb func() error, retried bool, meter []string,
	probes ...string) error {
	type result struct {
		out string
		err error
	}
	// The meter ends with its standard input, a pipe of the system: with another reader the command would not end
	// before that does.
	stdin, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	defer end.Close()
	done := make(chan result, 1)
	args := slices.Concat(meter[1:], []string{"run", "5m"}, probes)
	side := &Tour{Lab: t.Lab, Kubectl: t.Kubectl, Kubeconfig: t.Kubeconfig}
	start := time.Now()
	go func() {
		out, err := side.command(ctx, stdin, meter[0], args...)
		done <- result{out, err}
	}()
	wait := func(until time.Time) {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(until)):
		}
	}
	var disturbed error
	last := start.Add(d)
	if disturb != nil {
		wait(start.Add(2 * time.Second)) // traffic is flowing before the disturbance
		disturbed = disturb()
		if after := time.Now().Add(3 * time.Second); after.After(last) { // and after it
			last = after
		}
	}
	if disturbed == nil {
		wait(last)
	}
	end.Close()
	r := <-done
	t.shown.WriteString(side.shown.String())
	if disturbed != nil {
		return disturbed
	}
	var report struct {
		Counts []struct {
			Kind                   string
			Sent, Lost, Unanswered int64
			First                  string
		}
		Retransmits int64
	}
	// If something was lost the meter fails, too; the result is evaluated here.
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		return fmt.Errorf("loss meter: %w: %s", errors.Join(r.err, err), r.out)
	}
	for _, c := range report.Counts {
		lost := c.Lost
		if retried && c.Kind == "dns" {
			lost = c.Unanswered
		}
		if c.Sent == 0 || lost > 0 {
			return fmt.Errorf("%s: lost %d of %d, the first %s", c.Kind, lost, c.Sent, c.First)
		}
	}
	if len(report.Counts) != len(probes) {
		return fmt.Errorf("%d kinds of traffic were measured, want %d", len(report.Counts), len(probes))
	}
	return nil
}

func nodePort(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, fmt.Sprintf(frontendYAML, t.image())); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "rollout", "status", "deployment/frontend", "--timeout=100s"); err != nil {
		return err
	}
	at, err := t.one(ctx, "{.items[*].spec.nodeName}", "pods", "-l", "app=frontend")
	if err != nil {
		return err
	}
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n == at {
			continue
		}
		addr, err := t.fields(ctx, `{.status.addresses[?(@.type=="InternalIP")].address}`, "node", n)
		if err != nil || len(addr) == 0 {
			return fmt.Errorf("address of %s: %w", n, err)
		}
		err = eventually(ctx, func() error {
			out, err := t.at(ctx, "outside", "curl", "-sS", "-m", "5", "http://"+addr[0]+":30080/hostname")
			return errors.Join(err, want(out, "frontend-"))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func headless(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, headlessYAML); err != nil {
		return err
	}
	pods, err := t.podIPs(ctx, "app=backend")
	if err != nil || len(pods) != 3 {
		return fmt.Errorf("%d backends: %w", len(pods), err)
	}
	return fromEveryNode(func(ctx context.Context, t *Tour, pod string) error {
		return eventually(ctx, func() error {
			out, err := t.in(ctx, pod, "dig", "+short", "+search", "cassandra")
			got := strings.Fields(out)
			slices.Sort(got)
			if err == nil && !slices.Equal(got, pods) {
				err = fmt.Errorf("answer %v, pods %v", got, pods)
			}
			return err
		})
	})(ctx, t)
}

func statefulSet(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, fmt.Sprintf(mysqlYAML, t.image())); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "rollout", "status", "statefulset/mysql", "--timeout=100s"); err != nil {
		return err
	}
	for i := range 3 {
		name := fmt.Sprintf("mysql-%d", i)
		ip, err := t.one(ctx, "{.status.podIP}", "pod", name)
		if err != nil {
			return err
		}
		err = eventually(ctx, func() error {
			pods, err := t.clients(ctx)
			if err != nil {
				return err
			}
			out, err := t.in(ctx, pods[i%len(pods)], "dig", "+short", name+".mysql.default.svc.cluster.local")
			if err == nil && out != ip {
				err = fmt.Errorf("%s has %s, DNS says %q", name, ip, out)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func externalName(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, externalYAML); err != nil {
		return err
	}
	return eventually(ctx, func() error {
		pods, err := t.clients(ctx)
		if err != nil {
			return err
		}
		out, err := t.in(ctx, pods[0], "dig", "+noall", "+answer", "+search", "external-db")
		return errors.Join(err, want(out, "CNAME", "db.example.com."))
	})
}

func resolvConf(ctx context.Context, t *Tour) error {
	return fromEveryNode(func(ctx context.Context, t *Tour, pod string) error {
		out, err := t.in(ctx, pod, "cat", "/etc/resolv.conf")
		return errors.Join(err, want(out, "nameserver 10.96.0.10",
			"search default.svc.cluster.local svc.cluster.local cluster.local", "options ndots:5"))
	})(ctx, t)
}

// asked returns the names that a search walked through, as dig reports them.
func (t *Tour) asked(ctx context.Context, pod string) ([]string, error) {
	out, err := t.in(ctx, pod, "dig", "+search", "+showsearch", "+noall", "+question", "+answer", "google.com")
	if err != nil {
		return nil, err
	}
	if !regexp.MustCompile(`(?m)^google\.com\.\s.*\sA\s`).MatchString(out) {
		return nil, fmt.Errorf("no address of google.com in: %s", out)
	}
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^;(\S+)\s+IN\s+A`).FindAllStringSubmatch(out, -1) {
		names = append(names, m[1])
	}
	return names, nil
}

// firstStep checks pods with the default search list, on every node.
func firstStep(ctx context.Context, t *Tour) error {
	return fromEveryNode(func(ctx context.Context, t *Tour, pod string) error {
		names, err := t.asked(ctx, pod)
		if err == nil && !slices.Equal(names, []string{"google.com.default.svc.cluster.local."}) {
			err = fmt.Errorf("walked %v, want the first step alone", names)
		}
		return err
	})(ctx, t)
}

// fourSteps checks a pod with its own searches; the kubelet removes duplicates, so its list looks like the others'.
func fourSteps(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, fmt.Sprintf(ndotsYAML, "ndots5", "searches: [cluster.local]", t.image())); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "wait", "--for=condition=Ready", "pod/ndots5", "--timeout=50s"); err != nil {
		return err
	}
	names, err := t.asked(ctx, "ndots5")
	steps := []string{"google.com.default.svc.cluster.local.", "google.com.svc.cluster.local.",
		"google.com.cluster.local.", "google.com."}
	if err == nil && !slices.Equal(names, steps) {
		err = fmt.Errorf("walked %v, want %v", names, steps)
	}
	return err
}

func oneStep(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, fmt.Sprintf(ndotsYAML, "ndots1", `options: [{name: ndots, value: "1"}]`,
		t.image())); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "wait", "--for=condition=Ready", "pod/ndots1", "--timeout=50s"); err != nil {
		return err
	}
	names, err := t.asked(ctx, "ndots1")
	if err == nil && !slices.Equal(names, []string{"google.com."}) {
		err = fmt.Errorf("walked %v", names)
	}
	return err
}

// shownSteps queries as two pods: one with the default search list, and the one of fourSteps.
func shownSteps(ctx context.Context, t *Tour) error {
	pods, err := t.clients(ctx)
	if err != nil {
		return err
	}
	for pod, wanted := range map[string][]string{
		pods[0]: {"autopath on", "1. google.com.default.svc.cluster.local. A: NOERROR from zone, ",
			"autopath google.com. NOERROR from "},
		"ndots5": {"autopath not for its search list", "1. google.com.default.svc.cluster.local. A: NXDOMAIN from zone",
			"google.com. A: NOERROR from "},
	} {
		node, err := t.one(ctx, "{.spec.nodeName}", "pod", pod)
		if err != nil {
			return err
		}
		agent, err := t.one(ctx, "{.items[*].metadata.name}", "-n", "kube-system", "pods", "-l",
			"app.kubernetes.io/name=wayleave", "--field-selector", "spec.nodeName="+node)
		if err != nil {
			return err
		}
		out, err := t.kubectl(ctx, "-n", "kube-system", "exec", agent, "-c", "dns", "--", "/wayleave", "dns", "query",
			"--as", "pod/default/"+pod, "google.com")
		if err := errors.Join(err, want(out, wanted...)); err != nil {
			return fmt.Errorf("as %s: %w", pod, err)
		}
	}
	return nil
}

func podToPod(ctx context.Context, t *Tour) error {
	lines, err := t.kubectl(ctx, "get", "pods", "-l", "app=client", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.podIP}{"\n"}{end}`)
	if err != nil {
		return err
	}
	for from := range strings.Lines(lines) {
		for to := range strings.Lines(lines) {
			a, b := strings.Fields(from), strings.Fields(to)
			out, err := t.in(ctx, a[0], "curl", "-sS", "-m", "5", "http://"+b[1]+":8080/clientip")
			if err := errors.Join(err, want(out, a[1]+":")); err != nil {
				return fmt.Errorf("from %s to %s: %w", a[0], b[0], err)
			}
		}
	}
	return nil
}

// podToOutside makes the lab's external DNS server report the client's address.
func podToOutside(ctx context.Context, t *Tour) error {
	lines, err := t.kubectl(ctx, "get", "pods", "-l", "app=client", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.hostIP}{"\n"}{end}`)
	if err != nil {
		return err
	}
	server, err := t.at(ctx, "outside", "sh", "-c",
		"ip -4 -o addr show scope global | sed 's/.*inet //; s,/.*,,' | head -1")
	if err != nil {
		return err
	}
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		done := make(chan error, 1)
		side := &Tour{Lab: t.Lab, Kubectl: t.Kubectl, Kubeconfig: t.Kubeconfig}
		var seen string
		go func() {
			var err error
			seen, err = side.at(ctx, "outside", "timeout", "20", "nc", "-l", "-n", "-v", "-p", "7777")
			seen += side.shown.String()
			done <- err
		}()
		err := eventually(ctx, func() error {
			_, err := t.in(ctx, f[0], "sh", "-c", "echo hello | nc -w 2 -N "+server+" 7777")
			return err
		})
		if err := errors.Join(err, <-done); err != nil {
			return err
		}
		if err := want(seen, f[1], "hello"); err != nil {
			return err
		}
	}
	return nil
}

func badSlice(ctx context.Context, t *Tour) error {
	if err := t.apply(ctx, badSliceYAML); err != nil {
		return err
	}
	err := eventually(ctx, func() error {
		out, err := t.kubectl(ctx, "get", "events", "--field-selector", "involvedObject.name=broken-1", "-o",
			"jsonpath={.items[*].message}")
		return errors.Join(err, want(out, "ports[0].port"))
	})
	if err != nil {
		return err
	}
	pods, err := t.clients(ctx)
	if err != nil {
		return err
	}
	out, err := t.in(ctx, pods[0], "curl", "-sS", "-m", "5", "http://backend/hostname")
	err = errors.Join(err, want(out, "backend-"))
	_, gone := t.kubectl(ctx, "delete", "endpointslice,service", "-l", "demo=broken")
	return errors.Join(err, gone)
}

func killAgents(ctx context.Context, t *Tour) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	probes, err := t.probes(ctx)
	if err != nil {
		return err
	}
	err = t.closed(ctx, func() error {
		return t.meter(ctx, 15*time.Second, func() error {
			for _, n := range nodes {
				if _, err := t.at(ctx, n, "sh", "-c", `kill -9 $(pgrep -xf "/wayleave agent")`); err != nil {
					return fmt.Errorf("on %s: %w", n, err)
				}
			}
			return nil
		}, probes...)
	})
	if err != nil {
		return err
	}
	return errors.Join(rollout(ctx, t), statusFine(ctx, t))
}

// meterFirst returns the nodes, that of the loss meter first.
func (t *Tour) meterFirst(ctx context.Context) ([]string, error) {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return nil, err
	}
	own, err := t.one(ctx, "{.items[*].spec.nodeName}", "pods", "-l", "app=meter")
	if err != nil {
		return nil, err
	}
	return append([]string{own}, slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == own })...),
		nil
}

// fresh replaces pods: the kubelet restarts a container at once after its first exit, but after 10 s and more if it was
// killed before, by another check.
func (t *Tour) fresh(ctx context.Context) error {
	if _, err := t.kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/wayleave"); err != nil {
		return err
	}
	return errors.Join(rollout(ctx, t), statusFine(ctx, t))
}

// killed kills the processes of containers on a node, all at once, and waits for the next ones, which the kubelet
// starts; it does not use the API server.
func (t *Tour) killed(ctx context.Context, node string, processes ...string) error {
	pattern := "/wayleave (" + strings.Join(processes, "|") + ")"
	pids := func() ([]string, error) {
		out, err := t.at(ctx, node, "pgrep", "-xf", pattern)
		if err == nil && len(strings.Fields(out)) != len(processes) {
			err = fmt.Errorf("%d processes of %s", len(strings.Fields(out)), pattern)
		}
		return strings.Fields(out), err
	}
	old, err := pids()
	if err != nil {
		return fmt.Errorf("%s on %s: %w", pattern, node, err)
	}
	if _, err := t.at(ctx, node, "sh", "-c", "kill -9 "+strings.Join(old, " ")); err != nil {
		return fmt.Errorf("%s on %s: %w", pattern, node, err)
	}
	return eventually(ctx, func() error {
		now, err := pids()
		if err == nil && slices.ContainsFunc(now, func(p string) bool { return slices.Contains(old, p) }) {
			err = errors.New("an old process is still running")
		}
		return err
	})
}

// dnsReady waits until every DNS server passes the kubelet's probe, and the total number of restarts is reached.
func (t *Tour) dnsReady(ctx context.Context, restarts int) error {
	return eventually(ctx, func() error {
		list, err := t.fields(ctx,
			`{range .items[*].status.containerStatuses[?(@.name=="dns")]}{.ready}/{.restartCount} {end}`, "-n",
			"kube-system", "pods", "-l", "app.kubernetes.io/name=wayleave")
		if err != nil {
			return err
		}
		sum := 0
		for _, s := range list {
			n, err := strconv.Atoi(strings.TrimPrefix(s, "true/"))
			if err != nil {
				return fmt.Errorf("not all are ready: %v", list)
			}
			sum += n
		}
		if sum < restarts {
			return fmt.Errorf("%d starts, not yet %d: %v", sum, restarts, list)
		}
		return nil
	})
}

// dnsRestarts returns the total number of restarts of DNS servers.
func (t *Tour) dnsRestarts(ctx context.Context) (sum int, err error) {
	list, err := t.fields(ctx, `{.items[*].status.containerStatuses[?(@.name=="dns")].restartCount}`, "-n",
		"kube-system", "pods", "-l", "app.kubernetes.io/name=wayleave")
	for _, s := range list {
		n, bad := strconv.Atoi(s)
		err = errors.Join(err, bad)
		sum += n
	}
	return sum, err
}

// killDNS kills the DNS server of each node in turn, so that another node's server answers until the next one has
// started.
func killDNS(ctx context.Context, t *Tour) error {
	if err := t.fresh(ctx); err != nil {
		return err
	}
	nodes, err := t.meterFirst(ctx)
	if err != nil {
		return err
	}
	probes, err := t.probes(ctx)
	if err != nil {
		return err
	}
	before, err := t.dnsRestarts(ctx)
	if err != nil {
		return err
	}
	err = t.measure(ctx, 0, func() error {
		for i, n := range nodes {
			if err := errors.Join(t.killed(ctx, n, "dns"), t.dnsReady(ctx, before+i+1)); err != nil {
				return err
			}
		}
		return nil
	}, true, probes...)
	if err != nil {
		return err
	}
	return errors.Join(rollout(ctx, t), statusFine(ctx, t))
}

// loseAPI stops the API server's process, so that watches neither end nor deliver anything, and kills the DNS server
// and the agent of the meter's node, which cannot read anything again. Another node's server answers until the local
// one has its sockets, from an agent that never saw the API server.
func loseAPI(ctx context.Context, t *Tour) error {
	if err := t.fresh(ctx); err != nil {
		return err
	}
	nodes, err := t.meterFirst(ctx)
	if err != nil {
		return err
	}
	probes, err := t.probes(ctx)
	if err != nil {
		return err
	}
	signal := func(ctx context.Context, name string) error {
		_, err := t.at(ctx, "control", "sh", "-c", "kill -"+name+` $(pgrep -f "^kube-apiserver ")`)
		return err
	}
	const away = 15 * time.Second
	err = t.measure(ctx, 0, func() (err error) {
		start := time.Now()
		if err := signal(ctx, "STOP"); err != nil {
			return err
		}
		defer func() {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			err = errors.Join(err, signal(last, "CONT"))
		}()
		if err := errors.Join(t.killed(ctx, nodes[0], "dns", "agent"), t.listens(ctx, nodes[0])); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(start.Add(away))):
			return nil
		}
	}, true, probes...)
	if err != nil {
		return err
	}
	return errors.Join(rollout(ctx, t), statusFine(ctx, t))
}

// listens waits until a node's DNS server has its socket at the address of the cluster DNS, 10.96.0.10:53 in the
// kernel's notation.
func (t *Tour) listens(ctx context.Context, node string) error {
	return eventually(ctx, func() error {
		out, err := t.at(ctx, node, "cat", "/proc/net/udp")
		return errors.Join(err, want(out, "0A00600A:0035"))
	})
}

// probes returns all kinds of traffic of the loss meter.
func (t *Tour) probes(ctx context.Context) ([]string, error) {
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "echo")
	if err != nil {
		return nil, err
	}
	web, err := t.one(ctx, "{.spec.clusterIP}", "service", "backend")
	return []string{"udp=" + ip + ":7", "tcp=" + ip + ":7", "connect=" + ip + ":7", "http=" + web + ":80/hostname",
		"dns=10.96.0.10:53/backend.default.svc.cluster.local."}, err
}

// upgrade replaces every agent and every DNS server twice, and also the routing between nodes.
func upgrade(ctx context.Context, t *Tour) error {
	return t.rollouts(ctx, func() error {
		for _, mode := range []string{"vxlan", "auto"} {
			if err := errors.Join(t.set(ctx, "routing", mode), rollout(ctx, t)); err != nil {
				return err
			}
		}
		return nil
	})
}

// modes replaces the data plane of Services three times.
func modes(ctx context.Context, t *Tour) error {
	return t.rollouts(ctx, func() error {
		if err := errors.Join(t.set(ctx, "mode", "iptables"), rollout(ctx, t), listed(ctx, t)); err != nil {
			return errors.Join(err, t.set(ctx, "mode", "auto"))
		}
		if err := errors.Join(t.set(ctx, "mode", "ebpf"), rollout(ctx, t)); err != nil {
			return errors.Join(err, t.set(ctx, "mode", "auto"))
		}
		return errors.Join(t.set(ctx, "mode", "auto"), rollout(ctx, t))
	})
}

// rollouts makes two rollouts under the loss meter, while a pod tries what policy forbids.
func (t *Tour) rollouts(ctx context.Context, both func() error) error {
	probes, err := t.probes(ctx)
	if err != nil {
		return err
	}
	err = t.closed(ctx, func() error { return t.meter(ctx, 0, both, probes...) })
	if err != nil {
		return err
	}
	return statusFine(ctx, t)
}

// listed lists a node's rules with the image's own programs.
func listed(ctx context.Context, t *Tour) error {
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "backend")
	if err != nil {
		return err
	}
	iptables := func(args ...string) (string, error) {
		return t.kubectl(ctx, append([]string{"-n", "kube-system", "exec", "ds/wayleave", "-c", "agent", "--",
			"iptables", "-t", "nat"}, args...)...)
	}
	return eventually(ctx, func() error {
		out, err := iptables("-n", "-L", "KUBE-SERVICES")
		if err != nil {
			return err
		}
		m := regexp.MustCompile(`(KUBE-SVC-\S+) +(?:tcp|6) +-- +0\.0\.0\.0/0 +` + regexp.QuoteMeta(ip) +
			` .*default/backend cluster IP .*tcp dpt:80`).FindStringSubmatch(out)
		if m == nil {
			return fmt.Errorf("no rule for default/backend at %s in: %s", ip, out)
		}
		out, err = iptables("-S", m[1])
		return errors.Join(err, want(out, "--mode random --probability 0.3333", "--mode random --probability 0.5",
			"-j KUBE-SEP-"))
	})
}

// refuseMode requests a mode that does not exist: the new agents report why they do not start, and none of the old ones
// ends.
func refuseMode(ctx context.Context, t *Tour) error {
	probes, err := t.probes(ctx)
	if err != nil {
		return err
	}
	err = t.meter(ctx, 12*time.Second, func() error {
		refused := t.set(ctx, "mode", "xdp")
		if refused == nil {
			refused = eventually(ctx, func() error {
				out, err := t.kubectl(ctx, "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=wayleave",
					"-o", `jsonpath={range `+
						`.items[*]}{.status.containerStatuses[?(@.name=="agent")]..terminated.message}{"\n"}{end}`)
				return errors.Join(err, want(out,
					`settings: mode: found "xdp"; allowed: auto, nftables, iptables, ipvs, ebpf`))
			})
		}
		return errors.Join(refused, t.set(ctx, "mode", "auto"))
	}, probes...)
	if err != nil {
		return err
	}
	return errors.Join(rollout(ctx, t), statusFine(ctx, t))
}

// set changes a setting like a user, and restarts the agents.
func (t *Tour) set(ctx context.Context, key, value string) error {
	raw, err := t.kubectl(ctx, "-n", "kube-system", "get", "configmap", "wayleave", "-o",
		`jsonpath={.data.config\.yaml}`)
	if err != nil {
		return err
	}
	lines := strings.Split(raw, "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, key+":") })
	if i < 0 {
		return fmt.Errorf("the ConfigMap wayleave has no setting %s", key)
	}
	lines[i] = key + ": " + value
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"config.yaml": strings.Join(lines, "\n")}})
	if err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "-n", "kube-system", "patch", "configmap", "wayleave", "-p",
		string(patch)); err != nil {
		return err
	}
	_, err = t.kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/wayleave")
	return err
}
