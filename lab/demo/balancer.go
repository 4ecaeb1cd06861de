package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// failover is how long an address may be unanswered until another node takes over.
const failover = 2 * time.Second

const poolYAML = `apiVersion: wayleave.dev/v1alpha1
kind: AddressPool
metadata: {name: lan}
spec:
  addresses: [%s]
---
apiVersion: v1
kind: Service
metadata: {name: public}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: backend}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: public-local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: frontend}
  ports: [{port: 80, targetPort: 8080}]
`

// pool consists of addresses of the nodes' segment, in the families that nodes have.
func (t *Tour) pool(ctx context.Context) (string, error) {
	addrs, err := t.fields(ctx, `{.items[0].status.addresses[?(@.type=="InternalIP")].address}`, "nodes")
	if err != nil {
		return "", err
	}
	var ranges []string
	for _, a := range addrs {
		if netip.MustParseAddr(a).Is4() {
			ranges = append(ranges, "172.30.0.100-172.30.0.230")
		} else {
			ranges = append(ranges, `"fd00:30::1:0/112"`)
		}
	}
	return strings.Join(ranges, ", "), nil
}

// addresses returns the addresses of a Service.
func (t *Tour) addresses(ctx context.Context, service string) ([]string, error) {
	l, err := t.fields(ctx, "{.status.loadBalancer.ingress[*].ip}", "service", service)
	if err == nil && len(l) == 0 {
		err = fmt.Errorf("service %s has no address", service)
	}
	return l, err
}

// balanced checks that Services get addresses, which answer on the local network.
func balanced(ctx context.Context, t *Tour) error {
	pool, err := t.pool(ctx)
	if err != nil {
		return err
	}
	if err := t.apply(ctx, fmt.Sprintf(poolYAML, pool)); err != nil {
		return err
	}
	families := strings.Count(pool, ",") + 1
	return eventually(ctx, func() error {
		list, err := t.addresses(ctx, "public")
		if err == nil && len(list) != families {
			err = fmt.Errorf("addresses are %v, the nodes have %d families", list, families)
		}
		if err != nil {
			return err
		}
		out, err := t.kubectl(ctx, "get", "svc", "public")
		if err := errors.Join(err, want(out, "LoadBalancer", list[0])); err != nil {
			return err
		}
		for _, a := range list {
			out, err := t.at(ctx, "outside", "curl", "-sS", "-m", "2", "http://"+bracket(a)+"/hostname")
			if err := errors.Join(err, want(out, "backend-")); err != nil {
				return err
			}
			owner, err := t.owner(ctx, a)
			if err == nil && owner == "" {
				err = fmt.Errorf("`wayleave status --vips` shows no owner of %s", a)
			}
			if err != nil {
				return err
			}
		}
		out, err = t.kubectl(ctx, "get", "addresspools")
		return errors.Join(err, want(out, "lan", "USED", "FREE"))
	})
}

func bracket(a string) string {
	if strings.Contains(a, ":") {
		return "[" + a + "]"
	}
	return a
}

// keepsClient: with externalTrafficPolicy Local the node with the endpoint answers, and the endpoint sees the client's
// own address.
func keepsClient(ctx context.Context, t *Tour) error {
	return eventually(ctx, func() error {
		list, err := t.addresses(ctx, "public-local")
		if err != nil {
			return err
		}
		node, err := t.one(ctx, "{.items[*].spec.nodeName}", "pods", "-l", "app=frontend")
		if err != nil {
			return err
		}
		owner, err := t.owner(ctx, list[0])
		if err == nil && owner != node {
			err = fmt.Errorf("%s is answered by %q, the endpoint is on %s", list[0], owner, node)
		}
		if err != nil {
			return err
		}
		self, err := t.at(ctx, "outside", "sh", "-c", "ip -o addr show scope global | sed 's/.*inet6* //; s,/.*,,'")
		if err != nil {
			return err
		}
		out, err := t.at(ctx, "outside", "curl", "-sS", "-m", "2", "http://"+bracket(list[0])+"/clientip")
		if err != nil {
			return err
		}
		seen, err := netip.ParseAddrPort(strings.TrimSpace(out))
		if err == nil && !slices.Contains(strings.Fields(self), seen.Addr().String()) {
			err = fmt.Errorf("the endpoint saw %s, the client has %s", out, self)
		}
		return err
	})
}

// owner returns the node that answers for an address, as the agents report.
func (t *Tour) owner(ctx context.Context, addr string) (string, error) {
	owners, err := t.owners(ctx)
	return owners[addr], err
}

// owners asks the agents which addresses they answer for.
func (t *Tour) owners(ctx context.Context) (map[string]string, error) {
	lines, err := t.kubectl(ctx, "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=wayleave", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		table, err := t.kubectl(ctx, "-n", "kube-system", "exec", f[0], "-c", "agent", "--", "/wayleave",
			"status", "--vips")
		if err != nil {
			continue // being replaced
		}
		for row := range strings.Lines(table) {
			cells := strings.Fields(row)
			if len(cells) < 3 || cells[2] != f[1] {
				continue
			}
			if have := out[cells[0]]; have != "" && have != f[1] {
				return nil, fmt.Errorf("%s and %s both answer for %s", have, f[1], cells[0])
			}
			out[cells[0]] = f[1]
		}
	}
	return out, nil
}

// spreads: ownership of many addresses is spread evenly. With 90 over 3 nodes, the probability that one owns fewer than
// 15 or more than 45 is below one in a thousand, and the names are always the same.
func spreads(ctx context.Context, t *Tour) error {
	const many = 90
	var yaml strings.Builder
	for i := range many {
		fmt.Fprintf(&yaml, "apiVersion: v1\nkind: Service\nmetadata: {name: many-%d, labels: {demo: many}}\nspec: "+
			"{type: LoadBalancer, ports: [{port: 80}], allocateLoadBalancerNodePorts: false}\n---\n", i)
	}
	if err := t.apply(ctx, yaml.String()); err != nil {
		return err
	}
	err := eventually(ctx, func() error {
		list, err := t.fields(ctx, "{.items[*].status.loadBalancer.ingress[0].ip}", "services", "-l", "demo=many")
		slices.Sort(list)
		if err == nil && len(slices.Compact(list)) != many {
			err = fmt.Errorf("%d of %d services have an address of their own", len(slices.Compact(list)), many)
		}
		if err != nil {
			return err
		}
		owners, err := t.owners(ctx)
		if err != nil {
			return err
		}
		count := map[string]int{}
		for _, a := range list {
			if owners[a] == "" {
				return fmt.Errorf("no node answers for %s", a)
			}
			count[owners[a]]++
		}
		for n, k := range count {
			if k < 15 || k > 45 {
				return fmt.Errorf("%s answers for %d of %d: %v", n, k, many, count)
			}
		}
		return nil
	})
	_, gone := t.kubectl(ctx, "delete", "services", "-l", "demo=many")
	return errors.Join(err, gone)
}

// moves disturbs the owner of an address in several ways; each time another node must answer within the bound, as seen
// by the external client.
func moves(ctx context.Context, t *Tour) error {
	list, err := t.addresses(ctx, "public")
	if err != nil {
		return err
	}
	for _, addr := range list {
		for _, way := range []struct {
			name     string
			do, undo func(ctx context.Context, t *Tour, node string) error
		}{
			{"its agent is killed", killAgent, nil},
			{"its agent is told to end", deleteAgent, nil},
			{"its network is disconnected", cut, mend},
		} {
			if err := t.move(ctx, addr, way.name, way.do, way.undo); err != nil {
				return fmt.Errorf("%s, when %s: %w", addr, way.name, err)
			}
		}
	}
	return errors.Join(nodesReady(ctx, t), rollout(ctx, t), statusFine(ctx, t))
}

func (t *Tour) move(ctx context.Context, addr, name string, do, undo func(context.Context, *Tour, string) error) error {
	var owner string
	err := eventually(ctx, func() (err error) { // after the last one all nodes must be back
		if err := statusFine(ctx, t); err != nil {
			return err
		}
		if owner, err = t.owner(ctx, addr); err == nil && owner == "" {
			err = errors.New("nobody answers")
		}
		return err
	})
	if err != nil {
		return err
	}
	before, err := t.mac(ctx, addr)
	if err != nil {
		return err
	}
	if err := do(ctx, t, owner); err != nil {
		return err
	}
	start := time.Now()
	for {
		now, err := t.mac(ctx, addr)
		took := time.Since(start)
		if err == nil && now != before {
			fmt.Fprintf(t.Out, "        %s: %s answers %s after %s\n", addr, "another node",
				took.Round(10*time.Millisecond), name)
			break
		}
		if took > failover {
			err = fmt.Errorf("%s of %s still answers after %s: %w", before, owner, took, err)
			if undo != nil {
				err = errors.Join(err, undo(ctx, t, owner))
			}
			return err
		}
	}
	if undo != nil {
		return undo(ctx, t, owner)
	}
	return nil
}

// mac returns which node answers for an address, asked by the external client.
func (t *Tour) mac(ctx context.Context, addr string) (string, error) {
	args := []string{"arping", "-r", "-c", "1", "-w", "0.3", "-I", "eth0", addr}
	if strings.Contains(addr, ":") {
		args = []string{"ndisc6", "-m", "-q", "-r", "1", "-w", "300", addr, "eth0"}
	}
	out, err := t.at(ctx, "outside", args...)
	macs := slices.Compact(strings.Fields(strings.ToLower(out)))
	switch {
	case len(macs) == 0:
		return "", errors.Join(err, fmt.Errorf("no node answers for %s", addr))
	case len(macs) > 1:
		return "", fmt.Errorf("several answer for %s: %v", addr, macs)
	}
	return macs[0], nil
}

func killAgent(ctx context.Context, t *Tour, node string) error {
	_, err := t.at(ctx, node, "sh", "-c", `kill -9 $(pgrep -xf "/wayleave agent")`)
	return err
}

func deleteAgent(ctx context.Context, t *Tour, node string) error {
	_, err := t.kubectl(ctx, "-n", "kube-system", "delete", "pods", "--wait=false", "-l",
		"app.kubernetes.io/name=wayleave", "--field-selector", "spec.nodeName="+node)
	return err
}

// cut disconnects the node's cable: its end of the link loses the carrier.
func cut(ctx context.Context, t *Tour, node string) error { return t.cable(ctx, node, "down") }

func mend(ctx context.Context, t *Tour, node string) error { return t.cable(ctx, node, "up") }

func (t *Tour) cable(ctx context.Context, node, state string) error {
	_, err := t.command(ctx, nil, t.Lab, "cable", node, state)
	return err
}

// stays replaces every agent while the external client asks who has an address: it is always the same node, since each
// node's next agent takes over at once.
func stays(ctx context.Context, t *Tour) error {
	list, err := t.addresses(ctx, "public")
	if err != nil {
		return err
	}
	before, err := t.mac(ctx, list[0])
	if err != nil {
		return err
	}
	const asked = 150
	type answers struct {
		out string
		err error
	}
	done := make(chan answers, 1)
	side := &Tour{Lab: t.Lab, Kubectl: t.Kubectl, Kubeconfig: t.Kubeconfig}
	go func() {
		out, err := side.at(ctx, "outside", "arping", "-r", "-c", fmt.Sprint(asked), "-W", "0.1", "-I", "eth0", list[0])
		done <- answers{out, err}
	}()
	if _, err := t.kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/wayleave"); err != nil {
		return err
	}
	if err := rollout(ctx, t); err != nil {
		return err
	}
	a := <-done
	if a.err != nil {
		return a.err
	}
	macs := strings.Fields(a.out)
	if slices.ContainsFunc(macs, func(m string) bool { return m != before }) || len(macs) < asked-asked/10 {
		return fmt.Errorf("of %d requests %d were answered, by %v and not only by %s", asked, len(macs),
			slices.Compact(macs), before)
	}
	return statusFine(ctx, t)
}
