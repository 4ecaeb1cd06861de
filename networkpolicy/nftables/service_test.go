package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/ipvs"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/podnetwork/hostport"
	"wayleave.dev/service/conformance"
	"wayleave.dev/source/manifest"
)

// servedNodePort is that of the Service. There are two nodes with two pods each (pod1a,
// pod1b, pod2a, pod2b) and a client outside; the Service has pod1a as its only endpoint.
// Of the pods client=yes are pod1b and pod2b.
const servedNodePort = 30080

// servedHostPort is the hostPort of pod1a, on node1.
const servedHostPort = 8000

// served is the Service at each way that leads to it.
func served(local bool) *model.Service {
	var ports []model.ServicePort
	for _, p := range []model.Protocol{model.TCP, model.UDP} {
		ports = append(ports, model.ServicePort{Name: strings.ToLower(p.String()), Protocol: p, Port: 80,
			NodePort: servedNodePort})
	}
	return &model.Service{Name: model.Name{Namespace: "shop", Name: "web"}, Type: model.NodePort, Ports: ports,
		ExternalLocal:   local,
		ClusterIPs:      []netip.Addr{addr("10.96.0.50"), addr("fd00:96::50")},
		LoadBalancerIPs: []netip.Addr{addr("203.0.113.1"), addr("2001:db8:7::1")},
		ExternalIPs:     []netip.Addr{addr("203.0.113.2"), addr("2001:db8:7::2")}}
}

// town is the conformance world with policies in force on both nodes.
type town struct {
	t *testing.T
	*conformance.World
	clients map[string]conformance.Client
	guards  []*guard
}

// guard enforces policies on a node.
type guard struct {
	mode    *Mode
	planner *networkpolicy.Planner
	watch   *model.Watcher
	held    map[entryKey]entry
}

func newTown(t *testing.T, kind string) *town {
	t.Helper()
	switch {
	case strings.HasPrefix(kind, "iptables-"):
		testnet.Need(t, kind)
	case kind == "ipvs":
		if _, err := ipvs.NewKernel(0); err != nil {
			t.Skipf("this kernel has no ip_vs (make test-vm has): %v", err)
		}
	}
	w := &town{t: t, clients: map[string]conformance.Client{}}
	w.World = conformance.NewWorld(t, func(n *conformance.Node) conformance.Mode {
		c := conformance.NewChanging(t, n, time.Minute)
		c.Become(kind)
		return c
	})
	for _, c := range w.Clients() {
		w.clients[c.Name] = c
	}
	for _, p := range w.Pods {
		w.clients[p.Name] = conformance.Client{Name: p.Name, NS: p.NS, IPs: p.IPs}
	}
	w.write(func(tx *model.Writer) {
		tx.PutNamespace(&model.Namespace{Name: "shop",
			Labels: map[string]string{"kubernetes.io/metadata.name": "shop"}})
		for _, p := range w.Pods {
			labels := map[string]string{"pod": p.Name}
			if strings.HasSuffix(p.Name, "b") {
				labels["client"] = "yes"
			}
			tx.PutPod(&model.Pod{Name: model.Name{Namespace: "shop", Name: p.Name}, Node: w.Nodes[p.Node].Name,
				IPs: p.IPs, Labels: labels})
		}
	})
	for _, n := range w.Nodes {
		conn, err := nft.NewKernel(n.NS.FD())
		if err != nil {
			t.Fatal(err)
		}
		watch, err := w.Store.Watch(networkpolicy.PlannerKinds)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(watch.Close)
		w.guards = append(w.guards, &guard{mode: New(conn, conntrack.NewTracker(n.NS.FD())),
			planner: networkpolicy.NewPlanner(networkpolicy.NodeInputs{Node: n.Name}),
			watch:   watch, held: map[entryKey]entry{}})
	}
	return w
}

func (w *town) write(fn func(*model.Writer)) {
	w.t.Helper()
	if err := w.Store.Write(fn); err != nil {
		w.t.Fatal(err)
	}
}

// hold has the nodes enforce exactly these policies, a spec a line, and forget all flows.
func (w *town) hold(specs ...string) {
	w.t.Helper()
	w.write(func(tx *model.Writer) {
		for _, n := range tx.Names(model.NetworkPolicyKind) {
			tx.Delete(model.NetworkPolicyKind, n)
		}
	})
	for i, spec := range specs {
		doc := fmt.Sprintf(
			"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: p%d}\nspec: %s\n",
			i, spec)
		if problems, err := manifest.Read(w.Store, "policy", strings.NewReader(doc)); err != nil || len(problems) > 0 {
			w.t.Fatal(err, problems)
		}
	}
	for _, g := range w.guards {
		if err := g.follow(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, n := range w.Nodes {
		n.NS.ForgetFlows()
	}
}

func (g *guard) follow(ctx context.Context) error {
	snap, changes, _ := g.watch.Poll()
	for _, k := range g.planner.Keys(snap, changes) {
		if e, ok, _ := g.planner.Plan(snap, k); ok {
			g.held[k] = e
		} else {
			delete(g.held, k)
		}
	}
	entries := map[entryKey]entry{}
	for k, e := range g.held {
		entries[k] = e
	}
	return g.mode.Sync(ctx, entries)
}

// drops is how many packets were dropped.
func (w *town) drops() (n uint64) {
	w.t.Helper()
	for _, g := range w.guards {
		d, err := g.mode.Drops(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, k := range d {
			n += k
		}
	}
	return n
}

// to is the address of a way to the Service.
func (w *town) to(way string, is6 bool) netip.AddrPort {
	s, i := served(false), 0
	if is6 {
		i = 1
	}
	switch way {
	case "node1":
		return port(w.Nodes[0].Addrs[i], servedNodePort)
	case "node2":
		return port(w.Nodes[1].Addrs[i], servedNodePort)
	case "host port":
		return port(w.Nodes[0].Addrs[i], servedHostPort)
	case "cluster IP":
		return port(s.ClusterIPs[i], 80)
	case "load balancer":
		return port(s.LoadBalancerIPs[i], 80)
	}
	return port(s.ExternalIPs[i], 80)
}

// trip is a client on one of the ways.
type trip struct {
	client, way string
	passes      bool
}

// trips reads "pod2b by node1, outside by load balancer".
func trips(passes bool, text string) (out []trip) {
	for part := range strings.SplitSeq(text, ", ") {
		if client, way, ok := strings.Cut(part, " by "); ok {
			out = append(out, trip{client, way, passes})
		}
	}
	return out
}

// travel tries all trips, with both protocols and families, at once: what is dropped is
// waited for in vain.
func (w *town) travel(what string, trips []trip) {
	w.t.Helper()
	var wg sync.WaitGroup
	before, denied := w.drops(), false
	for _, tr := range trips {
		denied = denied || !tr.passes
		c := w.clients[tr.client]
		for _, network := range networks() {
			for _, is6 := range families() {
				wg.Go(func() {
					within := patience
					if !tr.passes {
						within = impatience
					}
					to := w.to(tr.way, is6)
					conn, err := c.NS.Dial(network, to.String(), within)
					answered, seen := "", netip.Addr{}
					if err == nil {
						defer conn.Close()
						answered, seen, err = conformance.SayWithin(conn, within)
					}
					switch {
					case tr.passes && (err != nil || answered != "pod1a"):
						w.t.Errorf("%s: %s by %s, %s to %s: %q answered, %v", what, tr.client, tr.way, network, to,
							answered, err)
					case !tr.passes && !timedOut(err):
						w.t.Errorf("%s: %s by %s, %s to %s: %q answered and saw %s, %v; want it dropped", what,
							tr.client, tr.way, network, to, answered, seen, err)
					}
				})
			}
		}
	}
	wg.Wait()
	if got := w.drops() > before; got != denied {
		w.t.Errorf("%s: packets were dropped: %t, want %t", what, got, denied)
	}
}

// hostPort maps a port of node1 to pod1a.
func (w *town) hostPort() {
	w.t.Helper()
	conn, err := nft.NewKernel(w.Nodes[0].NS.FD())
	if err != nil {
		w.t.Fatal(err)
	}
	var list []hostport.Mapping
	for _, p := range []model.Protocol{model.TCP, model.UDP} {
		list = append(list, hostport.Mapping{HostPort: servedHostPort, ContainerPort: 8080, Protocol: p})
	}
	for _, f := range nft.Families() {
		table := nft.Table{Family: f, Name: "host-ports", Sets: hostport.Sets(), Chains: hostport.Chains(f)}
		if err := conn.Commit(w.t.Context(), table, nft.Batch{Base: true, Add: hostport.Elements(f, w.Pods[0].IPs,
			list)}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// outsideBy has the client outside reach the Service's external addresses by a node.
func (w *town) outsideBy(node int) {
	s := served(false)
	for _, ips := range [][]netip.Addr{s.LoadBalancerIPs, s.ExternalIPs} {
		for i, a := range ips {
			w.Outside.Run("ip", "route", "replace", netip.PrefixFrom(a, a.BitLen()).String(), "via",
				w.Nodes[node].Addrs[i].String())
		}
	}
}

// Policies by which the ways differ: who may come in to pod1a, and whereto the clients
// may go out.
const (
	inNobody = `{podSelector: {matchLabels: {pod: pod1a}}, policyTypes: [Ingress]}`
	inClient = `{podSelector: {matchLabels: {pod: pod1a}}, ingress: [{from: [{podSelector: {matchLabels: {client: ` +
		`"yes"}}}], ports: [{port: 8080}, {port: 8080, protocol: UDP}]}]}`
	// Ports of the Service, which the pod does not see.
	inOtherPorts = `{podSelector: {matchLabels: {pod: pod1a}}, ingress: [{ports: [{port: 80}, {port: 80, protocol: ` +
		`UDP}, {port: 30080}, {port: 30080, protocol: UDP}]}]}`
	inOutside = `{podSelector: {matchLabels: {pod: pod1a}}, ingress: [{from: [{ipBlock: {cidr: 172.30.0.99/32}}, ` +
		`{ipBlock: {cidr: "fd00:30::99/128"}}]}]}`
	inNode2 = `{podSelector: {matchLabels: {pod: pod1a}}, ingress: [{from: [{ipBlock: {cidr: 172.30.0.12/32}}, ` +
		`{ipBlock: {cidr: "fd00:30::12/128"}}]}]}`
	inEverywhere = `{podSelector: {matchLabels: {pod: pod1a}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, ` +
		`{ipBlock: {cidr: "::/0"}}]}]}`
	// Addresses of Services are none that a pod is reached at.
	outToVIPs = `{podSelector: {matchLabels: {client: "yes"}}, policyTypes: [Egress], egress: [{to: [{ipBlock: ` +
		`{cidr: 10.96.0.0/12}}, {ipBlock: {cidr: "fd00:96::/112"}}, {ipBlock: {cidr: 203.0.113.0/24}}]}]}`
	outToWeb = `{podSelector: {matchLabels: {client: "yes"}}, policyTypes: [Egress], egress: [{to: [{podSelector: ` +
		`{matchLabels: {pod: pod1a}}}], ports: [{port: 8080}, {port: 8080, protocol: UDP}]}]}`
	outNowhere = `{podSelector: {matchLabels: {client: "yes"}}, policyTypes: [Egress]}`
	outToPorts = `{podSelector: {matchLabels: {client: "yes"}}, policyTypes: [Egress], egress: [{ports: [{port: ` +
		`80}, {port: 80, protocol: UDP}, {port: 30080}, {port: 30080, protocol: UDP}]}]}`
)

// ways are what passes and what is dropped under a policy. The client outside reaches the
// external addresses by the node "at".
type ways struct {
	policy, what  string
	at            int
	passes, drops string
}

// clusterWays are those of externalTrafficPolicy Cluster: who comes by another node than
// the pod's is that node.
var clusterWays = []ways{
	{inNobody, "nobody may come in, by node1", 0, "pod1a by node1, node1 itself by node1, node1 itself by cluster " +
		"IP, node1 itself by load balancer, pod1a by cluster IP",
		"outside by node1, outside by node2, outside by load balancer, outside by external IP, node2 itself by " +
			"node1, node2 itself by node2, node2 itself by cluster IP, " +
			"pod1b by node1, pod1b by node2, pod1b by cluster IP, pod1b by load balancer, pod1b by external IP, " +
			"pod2b by node1, pod2b by node2, pod2b by cluster IP, pod2b by load balancer, pod2b by external IP"},
	{inNobody, "nobody may come in, by node2; what comes back by another node is that node's", 1, "",
		"outside by load balancer, outside by external IP, node1 itself by node2, pod1a by node2"},
	{inNobody, "nobody may come in by the host port", 0, "pod1a by host port, node1 itself by host port",
		"outside by host port, node2 itself by host port, pod1b by host port, pod2b by host port"},
	{inClient, "pods may come in by the host port", 0, "pod1b by host port, pod2b by host port",
		"outside by host port, pod2a by host port, node2 itself by host port"},
	{inOutside, "an address outside may come in by the host port", 0, "outside by host port",
		"pod1b by host port, node2 itself by host port"},
	{outToWeb, "out to the pod by the host port, which from elsewhere is a port of a node", 0,
		"pod1b by host port, pod2a by host port", "pod2b by host port"},
	{outNowhere, "out to nowhere by the host port", 0, "pod2a by host port", "pod1b by host port, pod2b by host port"},
	{inClient, "pods may come in", 0, "pod1b by node1, pod1b by cluster IP, pod1b by load balancer, pod1b by " +
		"external IP, pod2b by node1, pod2b by cluster IP",
		"pod1b by node2, pod2b by node2, pod2b by load balancer, pod2b by external IP, pod2a by node1, pod2a by " +
			"cluster IP, outside by node1, node2 itself by node1"},
	{inOtherPorts, "the port is the pod's", 0, "",
		"outside by node1, outside by node2, outside by load balancer, pod1b by cluster IP, pod2b by node1"},
	{inOutside, "an address outside may, by node1", 0,
		"outside by node1, outside by load balancer, outside by external IP",
		"outside by node2, node2 itself by node1, pod1b by node1"},
	{inOutside, "an address outside may, by node2", 1, "", "outside by load balancer, outside by external IP"},
	{inNode2, "node2 may, and who comes by it", 1, "outside by node2, outside by load balancer, outside by external " +
		"IP, node2 itself by node1, node2 itself by node2, node2 itself by cluster IP, pod2b by node2, pod1b by node2",
		"outside by node1, pod1b by node1, pod2b by cluster IP"},
	{inEverywhere, "all addresses are those of nodes and pods, too", 1, "outside by node1, outside by node2, " +
		"outside by load balancer, node2 itself by node1, pod1b by node2, pod2b by node2, pod2b by cluster IP", ""},
	{outToVIPs, "out to the addresses of Services", 0, "",
		"pod1b by cluster IP, pod1b by load balancer, pod2b by cluster IP, pod1b by node1"},
	{outToWeb, "out to the pod", 0, "pod1b by node1, pod1b by cluster IP, pod1b by load balancer, pod1b by external " +
		"IP, pod2b by node2, pod2b by cluster IP, pod2b by load balancer, pod2a by node1",
		"pod1b by node2, pod2b by node1"},
	{outNowhere, "out to nowhere", 0, "pod2a by node1", "pod1b by node1, pod1b by node2, pod1b by cluster IP, pod1b " +
		"by load balancer, pod1b by external IP, pod2b by node1, pod2b by node2, pod2b by cluster IP"},
	{outToPorts, "out to other ports: those of another node's address are what they say", 0,
		"pod1b by node2, pod2b by node1",
		"pod1b by node1, pod1b by cluster IP, pod1b by load balancer, pod2b by node2, pod2b by cluster IP"},
}

// localWays are those of Local, which keeps addresses: outside is served by the pod's
// node only.
var localWays = []ways{
	{inNobody, "nobody may come in", 0, "pod1a by node1, node1 itself by node1, node1 itself by load balancer",
		"outside by node1, outside by load balancer, outside by external IP, node2 itself by node1, node2 itself by " +
			"node2, pod1b by node1, pod1b by load balancer, pod2b by node1, pod2b by node2, pod2b by load balancer"},
	{inClient, "pods may come in", 0, "pod1b by node1, pod1b by load balancer, pod1b by external IP, pod2b by " +
		"node1, pod2b by node2, pod2b by load balancer, pod2b by external IP",
		"pod2a by node1, pod2a by node2, pod2a by load balancer, outside by node1, outside by load balancer, node2 " +
			"itself by node1"},
	{inOtherPorts, "the port is the pod's", 0, "", "outside by node1, outside by load balancer, pod2b by node1"},
	{inOutside, "an address outside may", 0, "outside by node1, outside by load balancer, outside by external IP",
		"node2 itself by node1, pod1b by node1, pod2b by node2"},
	{inNode2, "node2 may, and nobody else", 0,
		"node2 itself by node1, node2 itself by node2, node2 itself by load balancer",
		"outside by node1, outside by load balancer, pod1b by node1, pod2b by node1, pod2b by node2"},
	{outToWeb, "out to the pod", 0, "pod1b by node1, pod1b by load balancer, pod1b by external IP, pod2b by node2, " +
		"pod2b by load balancer, pod2a by node1", "pod1b by node2, pod2b by node1"},
	{outNowhere, "out to nowhere", 0, "pod2a by node1",
		"pod1b by node1, pod1b by load balancer, pod2b by node1, pod2b by node2, pod2b by load balancer"},
}

// Policy holds by NodePort, hostPort, the address of a load balancer and externalIPs, with
// externalTrafficPolicy Cluster and Local, from outside, from both nodes and from pods of
// both: it is decided behind translation and before the source is rewritten, on each node
// that a packet passes.
func TestPolicyHoldsByEveryWayToAService(t *testing.T) {
	for _, kind := range []string{"nftables", "iptables-nft", "iptables-legacy", "ipvs"} {
		for _, tc := range []struct {
			name  string
			local bool
			ways  []ways
		}{{"Cluster", false, clusterWays}, {"Local", true, localWays}} {
			t.Run(kind+", externalTrafficPolicy "+tc.name, func(t *testing.T) {
				t.Parallel()
				w := newTown(t, kind)
				w.Set(served(tc.local), w.Pods[0])
				w.hostPort()
				// Nobody is isolated: the ways are there.
				for at, by := range []string{"node1", "node2"} {
					if at == 1 && tc.local {
						break
					}
					w.outsideBy(at)
					w.hold()
					w.travel("open", trips(true, "outside by "+by+", outside by load balancer, outside by external "+
						"IP, node2 itself by node1, pod1b by node1, pod2b by node1, pod2b by node2, pod2b by load "+
						"balancer, outside by host port, pod2b by host port"))
				}
				if !tc.local {
					w.travel("open", trips(true, "pod1a by node2, pod1b by node2, node1 itself by node2"))
				}
				for _, x := range tc.ways {
					w.outsideBy(x.at)
					w.hold(x.policy)
					w.travel(x.what, append(trips(true, x.passes), trips(false, x.drops)...))
				}
			})
		}
	}
}
