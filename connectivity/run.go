package connectivity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"wayleave.dev/check"
	"wayleave.dev/source/kubernetes/sandbox"
)

// Parts of the suite that can be left out.
const (
	PartMTU          = "mtu"
	PartNodePort     = "nodeport"
	PartLoadBalancer = "loadbalancer"
	PartDNS          = "dns"
	PartPolicy       = "policy"
	PartIngress      = "ingress"
)

// Parts lists the parts that can be left out.
func Parts() []string {
	return []string{PartMTU, PartNodePort, PartLoadBalancer, PartDNS, PartPolicy, PartIngress}
}

// MaxNodes bounds the nodes of a run: each probes each.
const MaxNodes = 50

// Bounds of a run.
const (
	readyWithin   = 90 * time.Second
	addressWithin = 15 * time.Second
	cleanWithin   = 90 * time.Second
	every         = 500 * time.Millisecond
)

// Options choose what is tried.
type Options struct {
	// Nodes is how many nodes have pods: the first by name. Zero is all, at most MaxNodes.
	Nodes int
	// Skip are parts that are left out.
	Skip []string
	// Class is the IngressClass.
	Class string
	// ReadyWithin is how long pods may take to start, AddressWithin how long an address from outside of the test may
	// take; zero is 90 and 15 seconds.
	ReadyWithin, AddressWithin time.Duration
}

// Place is where the pods of a run are: a sandbox.
type Place interface {
	Name() string
	Start(ctx context.Context, pods []sandbox.Pod, port int, command ...string) error
	Pods(ctx context.Context) ([]sandbox.PodState, error)
	CreateService(ctx context.Context, v sandbox.Service) (sandbox.Exposed, error)
	Exposed(ctx context.Context, namespace, name string) (sandbox.Exposed, error)
	Isolate(ctx context.Context, name, from string) error
	HasClass(ctx context.Context, class string) (bool, error)
	CreateIngress(ctx context.Context, class, host, service string, port int) error
	IngressAddrs(ctx context.Context, name string) ([]netip.Addr, error)
	Exec(ctx context.Context, pod string, limit int, command ...string) ([]byte, error)
	Remove(ctx context.Context) error
}

// run is the state of one run.
type run struct {
	Options
	place Place
	nodes []sandbox.Node
	pods  map[string]sandbox.PodState
	lines map[string][]check.Line
	// domain is that of the cluster.
	domain string
	// service and headless are those of the servers.
	service, node, balancer sandbox.Exposed
}

// Names of pods and Services.
const (
	client   = "client"
	server   = "server"
	guarded  = "guarded"
	closed   = "closed"
	headless = "servers"
	alias    = "alias"
	balanced = "balanced"
)

// Run tries the network between the nodes, and removes the place, also when ctx ends. The report's sections are those
// of what was tried. The error says that the run could not be finished.
func Run(ctx context.Context, place Place, nodes []sandbox.Node, o Options) (report check.Report, err error) {
	r := &run{Options: o, place: place, nodes: nodes, lines: map[string][]check.Line{}}
	defer func() {
		err = errors.Join(err, r.clean(ctx, err != nil))
		report = r.report()
	}()
	limit := cmp.Or(o.Nodes, MaxNodes)
	if limit > MaxNodes {
		limit = MaxNodes
	}
	if len(r.nodes) == 0 {
		return report, errors.New("the cluster has no node that is ready and runs Linux")
	}
	if len(r.nodes) > limit {
		r.say("pods", "nodes", "", check.Warning, fmt.Sprintf("%d of %d nodes are tested", limit, len(r.nodes)),
			"wayleave test connectivity --nodes N")
		r.nodes = r.nodes[:limit]
	}
	if err := r.start(ctx); err != nil {
		return report, err
	}
	if err := r.expose(ctx); err != nil {
		return report, err
	}
	r.try(ctx, r.open())
	if err := r.ingress(ctx); err != nil {
		return report, err
	}
	if err := r.policy(ctx); err != nil {
		return report, err
	}
	return report, ctx.Err()
}

func (r *run) skips(part string) bool { return slices.Contains(r.Skip, part) }

func (r *run) say(section, id, where string, level check.Level, text, fix string) {
	r.lines[section] = append(r.lines[section], check.Line{ID: id, Where: where, Level: level, Text: text, Fix: fix})
}

// report has the sections in the order of the layers.
func (r *run) report() check.Report {
	var all []check.Section
	for _, title := range []string{"pods", "path", "services", "dns", "ingress", "policy", "clean-up"} {
		all = append(all, check.Section{Title: title, Lines: r.lines[title]})
	}
	return check.New(all...)
}

// start starts the pods, and waits until all are ready, or for ReadyWithin.
func (r *run) start(ctx context.Context) error {
	var pods []sandbox.Pod
	for i, n := range r.nodes {
		pods = append(pods, sandbox.Pod{Name: fmt.Sprintf("%s-%d", client, i), Node: n.Name, App: client},
			sandbox.Pod{Name: fmt.Sprintf("%s-%d", server, i), Node: n.Name, App: server})
	}
	last := r.nodes[len(r.nodes)-1].Name
	pods = append(pods, sandbox.Pod{Name: guarded, Node: last, App: guarded},
		sandbox.Pod{Name: closed, Node: last, App: closed})
	if err := r.place.Start(ctx, pods, TCPPort, "/wayleave", "probe-server"); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, cmp.Or(r.ReadyWithin, readyWithin))
	defer cancel()
	for {
		states, err := r.place.Pods(within)
		if err != nil && within.Err() == nil {
			return err
		}
		ready := map[string]sandbox.PodState{}
		for _, p := range states {
			if p.Ready {
				ready[p.Name] = p
			}
		}
		if err == nil {
			r.pods = ready
		}
		if len(ready) == len(pods) {
			return nil
		}
		select {
		case <-within.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.unready(pods, states)
			return nil
		case <-time.After(every):
		}
	}
}

func (r *run) unready(pods []sandbox.Pod, states []sandbox.PodState) {
	for _, p := range pods {
		if _, ok := r.pods[p.Name]; ok {
			continue
		}
		problem := "it was not created"
		if i := slices.IndexFunc(states, func(s sandbox.PodState) bool { return s.Name == p.Name }); i >= 0 {
			problem = states[i].Problem
		}
		r.say("pods", "start", "node/"+p.Node, check.Failed, "the pod "+p.Name+" is not ready: "+problem,
			"wayleave status --node "+p.Node+"; kubectl events -A --types=Warning; an image that is missing: --image")
	}
}

// clean removes the place, also after an interrupt. What is left is a line, and an error if no report is made.
func (r *run) clean(ctx context.Context, unreported bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanWithin)
	defer cancel()
	err := r.place.Remove(ctx)
	if err == nil {
		r.say("clean-up", "clean-up", "", check.Good, "the namespace of the test is removed", "")
		return nil
	}
	fix := "kubectl delete namespace " + r.place.Name()
	r.say("clean-up", "clean-up", "", check.Failed, err.Error(), fix)
	if unreported {
		return fmt.Errorf("%w; to remove it: %s", err, fix)
	}
	return nil
}

// of returns the ready pods of an app, by name.
func (r *run) of(app string) (out []sandbox.PodState) {
	for _, p := range r.pods {
		if p.App == app {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b sandbox.PodState) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func names(pods []sandbox.PodState) (out []string) {
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return out
}

// expose creates the Services.
func (r *run) expose(ctx context.Context) (err error) {
	if r.service, err = r.place.CreateService(ctx, sandbox.Service{Name: server, App: server, Type: "ClusterIP",
		TCP: TCPPort, UDP: UDPPort}); err != nil {
		return err
	}
	if !r.skips(PartNodePort) {
		if r.node, err = r.place.CreateService(ctx, sandbox.Service{Name: "node", App: server, Type: "NodePort",
			TCP: TCPPort, UDP: UDPPort}); err != nil {
			return err
		}
	}
	if !r.skips(PartLoadBalancer) {
		if err := r.balance(ctx); err != nil {
			return err
		}
	}
	if r.skips(PartDNS) {
		return nil
	}
	if _, err := r.place.CreateService(ctx, sandbox.Service{Name: headless, App: server, Type: "ClusterIP",
		Headless: true,
		TCP:      TCPPort}); err != nil {
		return err
	}
	if clients := r.of(client); len(clients) > 0 {
		got, err := r.ask(ctx, clients[0].Name, []Probe{{ID: "0", Kind: Domain}})
		if err == nil && len(got) == 1 {
			r.domain = got[0].Found
		}
	}
	if r.domain == "" {
		return nil // that pods have no search list fails below
	}
	_, err = r.place.CreateService(ctx, sandbox.Service{Name: alias, Type: "ExternalName",
		Target: server + "." + r.place.Name() + ".svc." + r.domain})
	return err
}

// balance creates a Service of type LoadBalancer, and waits for an address.
func (r *run) balance(ctx context.Context) (err error) {
	if _, err = r.place.CreateService(ctx, sandbox.Service{Name: balanced, App: server, Type: "LoadBalancer",
		TCP: TCPPort}); err != nil {
		return err
	}
	wait(ctx, cmp.Or(r.AddressWithin, addressWithin), func(ctx context.Context) bool {
		r.balancer, err = r.place.Exposed(ctx, "", balanced)
		return err == nil && len(r.balancer.External) > 0
	})
	if len(r.balancer.External) == 0 {
		r.say("services", PartLoadBalancer, "", check.Warning, "a Service of type LoadBalancer got no address",
			"create an AddressPool (docs/loadbalancer.md); or --skip "+PartLoadBalancer)
	}
	return ctx.Err()
}

// wait calls a function until it is true, or the time is over.
func wait(ctx context.Context, within time.Duration, done func(context.Context) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !done(ctx) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(every):
		}
	}
	return true
}
