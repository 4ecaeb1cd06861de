package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/model"
)

// The whole name of a Service that is missing, or that has no ready endpoint, is never answered by a wildcard of the
// node's search domain: the client that asks for it does not walk on.
func TestAWholeNameIsNotWalked(t *testing.T) {
	r := &Resolver{Zone: zone.New(), Domains: []string{"cluster.local."}, Forward: func(_ context.Context,
		q *dns.Msg) (*dns.Msg, error) {
		if dns.IsSubDomain("lan.test.", q.Question[0].Name) && q.Question[0].Qtype == dns.TypeA { // a wildcard
			return dnstest.Told(q, "192.0.2.99", 60), nil
		}
		return new(dns.Msg).SetRcode(q, dns.RcodeNameError), nil
	}}
	r.Zone.Set(model.Name{Namespace: "bugs"}, &schema.Records{})
	r.Zone.Set(dnstest.Name("bugs/peers"), &schema.Records{Unready: true})
	r.Zone.Set(dnstest.Name("bugs/web"), &schema.Records{VIPs: []netip.Addr{dnstest.Addr("10.96.0.9")}})
	c := schema.Caller{Pod: dnstest.Name("bugs/waiting"), Cluster: true, NDots: 5}
	for _, whole := range []string{"db", "peers", "DB", "peers-0.peers", "_raft._tcp.peers", "_raft._tcp.PEERS",
		"db-0.web", "nothing.web", "db-0.db", "_sql._tcp.db"} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV} {
			q := new(dns.Msg).SetQuestion(whole+".bugs.svc.cluster.local.", qtype)
			m := r.Resolve(t.Context(), q)
			if r.Autopath(t.Context(), q, m, c, []string{"lan.test"}) || dnstest.Text(m) != "NXDOMAIN:  +SOA" {
				t.Errorf("%s %s: %s", dns.TypeToString[qtype], whole, dnstest.Text(m))
			}
		}
	}
}

// The final answer of a client is the same with autopath as without, by the rules of both common resolvers, in
// worlds of random Services and zones with wildcards. Left out are whole names of two labels or more below the
// pod's own namespace that no Service is known for, also as the steps of a walk for a name with ndots dots: they
// cannot be told from the first step of a walk.
func TestAutopathChangesNoClientsAnswer(t *testing.T) {
	t.Parallel()
	rounds, shortened := 300, 0
	if testing.Short() {
		rounds = 50
	}
	for seed := range rounds {
		w := newWalkWorld(rand.New(rand.NewPCG(15, uint64(seed))))
		for _, asked := range w.names() {
			if w.isWholeName(asked) {
				continue
			}
			for what, walk := range map[string]walker{"glibc": glibcWalk, "musl": muslWalk} {
				for _, types := range [][]uint16{{dns.TypeA}, {dns.TypeAAAA}, {dns.TypeA, dns.TypeAAAA}} {
					w.r.Walks = &Walks{} // that of the one before is long over
					plain := walk(w.ask(t, false, &shortened), asked, w.list(), w.caller.NDots, types)
					short := walk(w.ask(t, true, &shortened), asked, w.list(), w.caller.NDots, types)
					if plain != short {
						t.Fatalf("world %d, %s asks for %s %v from %v with search %v: %s without autopath, %s "+
							"with it\n%v\n%v", seed, what, asked, types, w.caller, w.list(), plain, short,
							w.zone, w.outside)
					}
				}
			}
		}
	}
	if shortened < 10*rounds {
		t.Errorf("only %d first steps were answered in %d worlds", shortened, rounds)
	}
}

// isWholeName says whether a walk that autopath sees no first step of has a step below the pod's namespace.
func (w *walkWorld) isWholeName(asked string) bool {
	ns := "." + w.caller.Pod.Namespace
	if strings.Count(asked, ".") < w.caller.NDots {
		return false
	}
	for _, suffix := range []string{ns, ns + ".svc", ns + ".svc.cluster.local"} {
		if x, ok := strings.CutSuffix(asked, suffix); ok && strings.Contains(x, ".") {
			return true
		}
	}
	return false
}

// walkWorld is a cluster and the zones outside.
type walkWorld struct {
	rand    *rand.Rand
	caller  schema.Caller
	search  []string
	zone    map[model.Name]schema.Records
	outside map[string][]uint16 // the types that a name, or a wildcard, has
	r       *Resolver
}

var walkLabels = []string{"a", "b", "com"}

func newWalkWorld(r *rand.Rand) *walkWorld {
	w := &walkWorld{rand: r, zone: map[model.Name]schema.Records{}, outside: map[string][]uint16{}}
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	w.caller = schema.Caller{Pod: model.Name{Namespace: pick(walkLabels), Name: "pod"}, Cluster: true,
		NDots: 2 + r.IntN(4)}
	for _, ns := range walkLabels {
		w.zone[model.Name{Namespace: ns}] = schema.Records{}
		for _, svc := range walkLabels {
			v4, v6 := netip.AddrFrom4([4]byte{10, 96, 0, byte(r.IntN(250))}),
				netip.MustParseAddr(fmt.Sprintf("fd00:96::%x", r.IntN(250)))
			e, key := schema.Records{}, model.Name{Namespace: ns, Name: svc}
			switch r.IntN(8) {
			case 0:
				e.VIPs = []netip.Addr{v4}
			case 1:
				e.VIPs = []netip.Addr{v6}
			case 2:
				e.VIPs = []netip.Addr{v4, v6}
			case 3:
				e.Unready = true
			case 4:
				e.CNAME = pick(walkLabels) + "." + pick(walkLabels)
			case 5:
				e.Hosts = []schema.Host{{Name: pick(walkLabels), Addr: v4}}
			default:
				continue
			}
			w.zone[key] = e
		}
	}
	domains := []string{"lan.test", "corp.test", "com", "b.com"}
	r.Shuffle(len(domains), func(i, j int) { domains[i], domains[j] = domains[j], domains[i] })
	w.search = domains[:r.IntN(4)]
	// 0 is a server that fails
	types := [][]uint16{{dns.TypeA}, {dns.TypeAAAA}, {dns.TypeA, dns.TypeAAAA}, {dns.TypeTXT}, {0}}
	for range 2 + r.IntN(8) {
		n := pick(walkLabels)
		if r.IntN(4) == 0 {
			n = "*"
		}
		for range r.IntN(3) {
			n += "." + pick(walkLabels)
		}
		if r.IntN(2) == 0 && len(w.search) > 0 {
			n += "." + pick(w.search)
		}
		w.outside[n+"."] = types[min(r.IntN(8), r.IntN(len(types)))]
	}
	w.r = &Resolver{Zone: zone.New(), Domains: []string{"cluster.local."}, Forward: w.forward, Walks: &Walks{}}
	for k, e := range w.zone {
		w.r.Zone.Set(k, &e)
	}
	return w
}

func (w *walkWorld) list() []string { return w.caller.Search("cluster.local.", w.search) }

// forward is the world outside. A name is there when it, a name below it, or a wildcard above it is.
func (w *walkWorld) forward(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
	name := strings.ToLower(q.Question[0].Name)
	m := new(dns.Msg).SetReply(q)
	types, ok := w.outside[name]
	for n := range w.outside {
		if !ok && strings.HasSuffix(n, "."+name) {
			return m, nil // an empty non-terminal
		}
	}
	for at, end := 0, false; !ok && !end; {
		if at, end = dns.NextLabel(name, at); !end {
			types, ok = w.outside["*."+name[at:]]
		}
	}
	switch {
	case !ok:
		m.Rcode = dns.RcodeNameError
	case types[0] == 0:
		return nil, errors.New("no server answers")
	case slices.Contains(types, q.Question[0].Qtype):
		text := map[uint16]string{dns.TypeA: "A 192.0.2." + fmt.Sprint(len(name)), dns.TypeAAAA: "AAAA 2001:db8::" +
			fmt.Sprint(len(name))}[q.Question[0].Qtype]
		rr, err := dns.NewRR(q.Question[0].Name + " 60 IN " + text)
		if err != nil {
			return nil, err
		}
		m.Answer = []dns.RR{rr}
	}
	return m, nil
}

// names are what the pod asks for.
func (w *walkWorld) names() (out []string) {
	l := walkLabels
	for range 30 {
		n := l[w.rand.IntN(len(l))]
		for range w.rand.IntN(4) {
			n += "." + l[w.rand.IntN(len(l))]
		}
		out = append(out, n)
		if w.rand.IntN(3) == 0 {
			out = append(out, n+".")
		}
		if w.rand.IntN(3) == 0 {
			out = append(out, n+".svc", n+".svc.cluster.local")
		}
	}
	for _, ns := range l {
		for _, svc := range l {
			whole := svc + "." + ns + ".svc.cluster.local."
			out = append(out, whole)
			if _, ok := w.zone[model.Name{Namespace: ns, Name: svc}]; ok {
				out = append(out, "a."+whole, "nobody."+whole, "_x._tcp."+whole)
			}
		}
	}
	return out
}

func (w *walkWorld) ask(t *testing.T, autopath bool, shortened *int) func(string, uint16) *dns.Msg {
	return func(name string, qtype uint16) *dns.Msg {
		q := new(dns.Msg).SetQuestion(name, qtype)
		m := w.r.Resolve(t.Context(), q)
		if autopath && w.r.Autopath(t.Context(), q, m, w.caller, w.search) {
			*shortened++
		}
		return m
	}
}

// walker is a resolver: it returns the addresses that it finds, or what it finds instead.
type walker func(ask func(string, uint16) *dns.Msg, name string, search []string, ndots int, types []uint16) string

// found are the addresses of replies.
func found(replies []*dns.Msg) string {
	var out []string
	for _, m := range replies {
		for _, rr := range m.Answer {
			if t := rr.Header().Rrtype; m.Rcode == dns.RcodeSuccess && (t == dns.TypeA || t == dns.TypeAAAA) {
				out = append(out, strings.Fields(rr.String())[4])
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func askAll(ask func(string, uint16) *dns.Msg, name string, types []uint16) (out []*dns.Msg) {
	for _, t := range types {
		out = append(out, ask(name, t))
	}
	return out
}

// glibcWalk is res_search: a name that is there without the type does not end it, nor does a server that fails.
func glibcWalk(ask func(string, uint16) *dns.Msg, name string, search []string, ndots int, types []uint16) string {
	noData, failed := false, false
	step := func(n string) (string, bool) {
		replies := askAll(ask, n, types)
		if a := found(replies); a != "" {
			return a, true
		}
		rcode := replies[0].Rcode
		for _, m := range replies {
			if rcode == dns.RcodeSuccess && len(replies[0].Answer) == 0 {
				rcode = m.Rcode
			}
		}
		noData, failed = noData || rcode == dns.RcodeSuccess, failed || rcode == dns.RcodeServerFailure
		return "", false
	}
	var names []string
	if !strings.HasSuffix(name, ".") {
		for _, s := range search {
			names = append(names, name+"."+s+".")
		}
	}
	at := len(names)
	if strings.Count(name, ".") >= ndots {
		at = 0
	}
	for _, n := range slices.Insert(names, at, dns.Fqdn(name)) {
		if a, ok := step(n); ok {
			return a
		}
	}
	switch {
	case noData:
		return "no data"
	case failed:
		return "try again"
	}
	return "not found"
}

// muslWalk is musl's: only a name that is not there leads to the next, and with ndots dots there is no search.
func muslWalk(ask func(string, uint16) *dns.Msg, name string, search []string, ndots int, types []uint16) string {
	if strings.Count(name, ".") >= ndots || strings.HasSuffix(name, ".") {
		search = nil
	}
	step := func(n string) string {
		replies := askAll(ask, n, types)
		for _, m := range replies {
			switch m.Rcode {
			case dns.RcodeServerFailure:
				return "try again"
			case dns.RcodeNameError:
				return ""
			}
		}
		if a := found(replies); a != "" {
			return a
		}
		return "no data"
	}
	for _, s := range search {
		if a := step(name + "." + s + "."); a != "" {
			return a
		}
	}
	if a := step(dns.Fqdn(name)); a != "" {
		return a
	}
	return "not found"
}
