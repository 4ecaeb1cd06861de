package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	agent "wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/wire"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// outside is a server of the world outside, which counts what it is asked.
type outside struct {
	addr  netip.AddrPort
	mu    sync.Mutex
	asked []string
}

func newOutside(t *testing.T) *outside {
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &outside{addr: netip.MustParseAddrPort(p.LocalAddr().String())}
	srv := &dns.Server{PacketConn: p, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		o.mu.Lock()
		o.asked = append(o.asked, q.Question[0].Name)
		o.mu.Unlock()
		m := new(dns.Msg).SetReply(q)
		switch name := strings.ToLower(q.Question[0].Name); name {
		case "google.com.", "printer.corp.example.", "lab.printer.corp.example.":
			if q.Question[0].Qtype == dns.TypeA {
				rr, _ := dns.NewRR(name + " 17 IN A 192.0.2.7")
				m.Answer = append(m.Answer, rr)
			}
		case "broken.com.":
			m.Rcode = dns.RcodeServerFailure
		default:
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = srv.Shutdown() })
	return o
}

// callersRig is a rig that knows the pods at 10.7.0.2 (default/web) and
// 10.7.0.3 (shop/cart).
type callersRig struct {
	*rig
	out  *outside
	roll *agent.CallerTable
	pods map[model.Name]agent.CallerPlan
}

func pod(pod, addr string) agent.CallerPlan {
	return agent.CallerPlan{Caller: schema.Caller{Pod: dnstest.Name(pod), Cluster: true, NDots: 5},
		Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
}

func newCallersRig(t *testing.T) *callersRig {
	r := &callersRig{rig: newRig(t), out: newOutside(t), pods: map[model.Name]agent.CallerPlan{}}
	for _, a := range []string{"10.7.0.3/24", "10.7.0.4/24"} {
		r.client.Addr("eth0", a)
	}
	err := r.store.Write(func(w *model.Writer) {
		w.PutNamespace(&model.Namespace{Name: "shop"})
		w.PutService(&model.Service{Name: dnstest.Name("shop/db"),
			ClusterIPs: []netip.Addr{dnstest.Addr("10.96.0.60")}})
	})
	if err != nil {
		t.Fatal(err)
	}
	r.agent()
	r.settings(true)
	r.server()
	for _, p := range []agent.CallerPlan{pod("default/web", "10.7.0.2"), pod("shop/cart", "10.7.0.3")} {
		r.pods[p.Pod] = p
	}
	r.known(map[string]string{"10.7.0.2": "default/web", "10.7.0.3": "shop/cart"})
	return r
}

func (r *callersRig) settings(autopath bool) {
	r.feed.Configure(schema.Settings{Domains: []string{"cluster.local."},
		Clients:    []netip.Prefix{netip.MustParsePrefix("10.7.0.0/26"), netip.MustParsePrefix("fd07::/64")},
		Forwarding: schema.Forwarding{Upstreams: []model.Nameserver{{Addr: r.out.addr}}}, Autopath: autopath,
		Search: []string{"corp.example"}})
}

// known has the roll know the rig's pods, with these leases.
func (r *callersRig) known(leases map[string]string) {
	r.t.Helper()
	r.roll = &agent.CallerTable{Feed: r.feed, Leased: true}
	if err := r.roll.Sync(r.t.Context(), r.pods); err != nil {
		r.t.Fatal(err)
	}
	r.lease(leases)
}

func (r *callersRig) lease(leases map[string]string) {
	list := map[netip.Addr]model.Name{}
	for a, p := range leases {
		list[netip.MustParseAddr(a)] = dnstest.Name(p)
	}
	r.roll.Leases(list)
}

// answered waits until the client at an address gets the answer.
func (r *callersRig) answered(from, network, question string, qtype uint16, want string) {
	r.t.Helper()
	testnet.Eventually(r.t, 10*time.Second, func() error {
		m, err := r.ask(network, from+":0", "10.7.0.1:53", question, qtype)
		if err != nil {
			return err
		}
		if got := dnstest.Text(m); got != want {
			return fmt.Errorf("%s asks %s: %s, want %s", from, question, got, want)
		}
		return nil
	})
}

const googled = "NOERROR: A 192.0.2.7, CNAME google.com."

// The first step of a pod's walk to a name outside brings what the last would: in the
// order of the pod's own list, and only for the first step of its own namespace.
func TestAWalkIsAnsweredAtItsFirstStep(t *testing.T) {
	r := newCallersRig(t)
	const none = "NXDOMAIN:  +SOA"
	for _, c := range []struct {
		from, question string
		qtype          uint16
		want           string
	}{
		{"10.7.0.2", "google.com.default.svc.cluster.local.", dns.TypeA, googled},
		{"10.7.0.3", "google.com.shop.svc.cluster.local.", dns.TypeA, googled},
		{"10.7.0.2", "google.com.default.svc.cluster.local.", dns.TypeAAAA, "NOERROR: CNAME google.com."},
		{"10.7.0.2", "google.com.shop.svc.cluster.local.", dns.TypeA, none}, // another's namespace
		{"10.7.0.2", "google.com.svc.cluster.local.", dns.TypeA, none},      // not the first step
		// ndots has the name asked first as it is
		{"10.7.0.2", "a.b.c.d.e.x.default.svc.cluster.local.", dns.TypeA, none},
		{"10.7.0.2", "google.com.default.svc.cluster.local.", dns.TypeNS, none}, // no resolver searches for these
		{"10.7.0.2", "nobody.com.default.svc.cluster.local.", dns.TypeA, none},
		{"10.7.0.2", "broken.com.default.svc.cluster.local.", dns.TypeA, none},
		{"10.7.0.2", "default.svc.cluster.local.", dns.TypeA, "NOERROR:  +SOA"},
		// What is on the way comes before what is outside.
		{"10.7.0.2", "db.shop.default.svc.cluster.local.", dns.TypeA,
			"NOERROR: A 10.96.0.60, CNAME db.shop.svc.cluster.local."},
		// One label may be a Service's whole name; what the node's own list has is for clients that walk.
		{"10.7.0.2", "printer.default.svc.cluster.local.", dns.TypeA, none},
		{"10.7.0.2", "lab.printer.default.svc.cluster.local.", dns.TypeA, none},
		{"10.7.0.2", backendName, dns.TypeA, "NOERROR: A 10.96.100.50"},
		{"10.7.0.4", "google.com.default.svc.cluster.local.", dns.TypeA, none}, // no pod of this node
	} {
		for _, network := range []string{"udp", "tcp"} {
			r.answered(c.from, network, c.question, c.qtype, c.want)
		}
	}
	m, err := r.ask("udp", "10.7.0.2:0", "10.7.0.1:53", "GooGle.com.Default.svc.cluster.local.", dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Answer) != 2 || m.Answer[0].Header().Name != "GooGle.com.Default.svc.cluster.local." ||
		m.Answer[0].Header().Ttl != 17 {
		t.Errorf("the CNAME is not first, for the name as it was asked, with the TTL of what it leads to: %v", m.Answer)
	}
	if text, err := r.get("/metrics"); err != nil || !strings.Contains(text, "coredns_autopath_success_total ") ||
		strings.Contains(text, "coredns_autopath_success_total 0") {
		t.Errorf("the walks are not counted: %v\n%s", err, text)
	}
	r.settings(false)
	r.answered("10.7.0.2", "udp", "google.com.default.svc.cluster.local.", dns.TypeA, none)
}

// A pod whose list is its own walks by itself.
func TestOnlyTheUsualSearchListIsWalked(t *testing.T) {
	r := newCallersRig(t)
	const first = "google.com.default.svc.cluster.local."
	for _, change := range []func(*schema.Caller){
		func(c *schema.Caller) { c.Cluster = false }, func(c *schema.Caller) { c.Searches = []string{"cluster.local"} },
		func(c *schema.Caller) { c.NDots = 1 },
	} {
		r.answered("10.7.0.2", "udp", first, dns.TypeA, googled)
		p := pod("default/web", "10.7.0.2")
		change(&p.Caller)
		if err := r.roll.Apply(t.Context(), map[model.Name]agent.CallerPlan{p.Pod: p}, nil); err != nil {
			t.Fatal(err)
		}
		r.answered("10.7.0.2", "udp", first, dns.TypeA, "NXDOMAIN:  +SOA")
		if err := r.roll.Apply(t.Context(), map[model.Name]agent.CallerPlan{p.Pod: pod("default/web", "10.7.0.2")},
			nil); err != nil {
			t.Fatal(err)
		}
	}
}

// An address is a pod's while its lease says so, whatever the API says late; and
// no pod's where two claim it, or where no agent reports changes.
func TestAReusedAddressIsNotTakenForAnother(t *testing.T) {
	r := newCallersRig(t)
	const first, none = "google.com.default.svc.cluster.local.", "NXDOMAIN:  +SOA"
	r.answered("10.7.0.2", "udp", first, dns.TypeA, googled)
	// The API still has the address with web, while shop/next has the lease.
	r.lease(map[string]string{"10.7.0.2": "shop/next", "10.7.0.3": "shop/cart"})
	r.answered("10.7.0.2", "udp", first, dns.TypeA, none)
	r.answered("10.7.0.2", "udp", "google.com.shop.svc.cluster.local.", dns.TypeA, none)
	next := pod("shop/next", "10.7.0.2")
	if err := r.roll.Apply(t.Context(), map[model.Name]agent.CallerPlan{next.Pod: next}, nil); err != nil {
		t.Fatal(err)
	}
	r.answered("10.7.0.2", "udp", "google.com.shop.svc.cluster.local.", dns.TypeA, googled)
	r.answered("10.7.0.2", "udp", first, dns.TypeA, none)
	// Without leases (another's pod network) two claims are none.
	r.pods[next.Pod] = next
	r.roll = &agent.CallerTable{Feed: r.feed}
	if err := r.roll.Sync(t.Context(), r.pods); err != nil {
		t.Fatal(err)
	}
	r.answered("10.7.0.2", "udp", "google.com.shop.svc.cluster.local.", dns.TypeA, none)
	r.answered("10.7.0.3", "udp", "google.com.shop.svc.cluster.local.", dns.TypeA, googled)
}

// Without an agent no pod is known.
func TestCallersAreForgottenWithTheAgent(t *testing.T) {
	r := &callersRig{rig: newRig(t), out: newOutside(t), pods: map[model.Name]agent.CallerPlan{}}
	stop := r.agent()
	r.settings(true)
	r.server()
	r.pods[dnstest.Name("default/web")] = pod("default/web", "10.7.0.2")
	r.known(map[string]string{"10.7.0.2": "default/web"})
	const first = "google.com.default.svc.cluster.local."
	r.answered("10.7.0.2", "udp", first, dns.TypeA, googled)
	stop()
	r.answered("10.7.0.2", "udp", first, dns.TypeA, "NXDOMAIN:  +SOA")
	r.answered("10.7.0.2", "udp", "google.com.", dns.TypeA, "NOERROR: A 192.0.2.7")
}

// Queries are counted by pod, for the pods that are there.
func TestQueriesAreCountedByPod(t *testing.T) {
	r := newCallersRig(t)
	r.answered("10.7.0.3", "udp", backendName, dns.TypeA, "NOERROR: A 10.96.100.50")
	const cart, web = `wayleave_dns_pod_queries_total{namespace="shop",pod="cart"}`,
		`wayleave_dns_pod_queries_total{namespace="default",pod="web"}`
	testnet.Eventually(t, 10*time.Second, func() error { // the first query may come before the table
		if _, err := r.ask("udp", "10.7.0.3:0", "10.7.0.1:53", backendName, dns.TypeA); err != nil {
			return err
		}
		text, err := r.get("/metrics")
		if err == nil && (!strings.Contains(text, cart) || strings.Contains(text, web)) {
			err = fmt.Errorf("the pod that asked is not the only one that is counted: %s", text)
		}
		return err
	})
	delete(r.pods, dnstest.Name("shop/cart"))
	if err := r.roll.Sync(t.Context(), r.pods); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		text, err := r.get("/metrics")
		if err == nil && strings.Contains(text, cart) {
			err = fmt.Errorf("a pod that is gone is still counted: %s", text)
		}
		return err
	})
}

// get asks the server's own socket.
func (r *rig) get(path string) (string, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	return agent.Get(ctx, filepath.Join(r.dir, "health.sock"), path)
}

// The search list is the kubelet's: what the pod adds comes last, and nothing twice.
func TestSearchLists(t *testing.T) {
	for _, c := range []struct {
		caller schema.Caller
		want   string
	}{
		{schema.Caller{Pod: dnstest.Name("a/b"), Cluster: true},
			"a.svc.cluster.local svc.cluster.local cluster.local corp.example"},
		{schema.Caller{Pod: dnstest.Name("a/b"), Cluster: true, Searches: []string{"x.example.", "cluster.local"}},
			"a.svc.cluster.local svc.cluster.local cluster.local corp.example x.example"},
		{schema.Caller{Pod: dnstest.Name("a/b"), Searches: []string{"x.example"}}, "x.example"},
	} {
		if got := strings.Join(c.caller.Search("cluster.local.", []string{"corp.example"}), " "); got != c.want {
			t.Errorf("%v walks %s, want %s", c.caller, got, c.want)
		}
	}
}

// Of the names that are missing, only those that Autopath walks for leave the hot path:
// the rest of a pod's walk is answered there, and without allocation.
func TestOnlyFirstStepsLeaveTheHotPath(t *testing.T) {
	s := New(fill(t, dnstest.Cluster(t)), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	settings := schema.Settings{Domains: []string{"cluster.local.", "corp.example."}, Autopath: true}
	s.Configure(settings)
	r := &Resolver{Zone: s.resolver.Zone, Forward: upstream, Domains: settings.Domains}
	domains := wire.Domains(settings.Domains)
	callers := map[netip.Addr]schema.Caller{
		dnstest.Addr("10.7.0.2"): {Pod: dnstest.Name("default/web"), Cluster: true, NDots: 5},
		dnstest.Addr("10.7.0.3"): {Pod: dnstest.Name("shop/cart"), Cluster: true, NDots: 2},
		dnstest.Addr("10.7.0.4"): {Pod: dnstest.Name("default/own"), Cluster: true, NDots: 5,
			Searches: []string{"x.example"}},
		dnstest.Addr("10.7.0.5"): {Pod: dnstest.Name("default/one"), Cluster: true, NDots: 1},
		dnstest.Addr("10.7.0.6"): {},
	}
	s.SetCallers(callers)
	var names []string
	for _, outside := range []string{"google.com", "x", "a.b.c.d.e", "a.b.c.d.e.f", `a\.b`, "x.svc", "default"} {
		for _, suffix := range []string{"default.svc.cluster.local.", "Default.SVC.cluster.local.",
			"shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", "default.svc.corp.example.",
			"default.cluster.local.", "defaul.svc.cluster.local.", "default.svd.cluster.local."} {
			names = append(names, outside+"."+suffix)
		}
	}
	names = append(names, "nowhere.svc.cluster.local.", "svd.cluster.local.", "default.svc.cluster.local.",
		"svc.cluster.local.")
	took := map[bool]int{}
	for client, c := range callers {
		for _, n := range names {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypePTR} {
				for _, recursion := range []bool{true, false} {
					ask := new(dns.Msg).SetQuestion(n, qtype)
					ask.RecursionDesired = recursion
					in, err := ask.Pack()
					if err != nil {
						t.Fatal(err)
					}
					q, out := new(wire.Question), make([]byte, 0, wire.MaxUDP)
					slow := false
					look := func() {
						read := q.Read(in)
						_, missing, ok := s.resolver.Zone.Answer(out, in, q, domains, 0)
						if slow = s.ofCaller(client, q, domains, missing); !read || !ok {
							t.Fatalf("%v: not for the hot path at all", ask.Question)
						}
					}
					if allocs := testing.AllocsPerRun(1, look); allocs != 0 {
						t.Errorf("%v: %v allocations", ask.Question, allocs)
					}
					ctx, sources := traced(t.Context())
					r.Autopath(ctx, ask, r.Resolve(t.Context(), ask), c, nil)
					if want := strings.Contains(sources.String(), "autopath"); slow != want {
						t.Errorf("%v, of %v, recursion %v: the slow path is %v, and Autopath would walk is %v",
							ask.Question, c, recursion, slow, want)
					}
					took[slow]++
				}
			}
		}
	}
	if took[true] == 0 || took[false] < 10*took[true] {
		t.Errorf("%d left the hot path, %d stayed", took[true], took[false])
	}
}
