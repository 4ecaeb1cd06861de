package loadbalancer

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/loadbalancer"
	"wayleave.dev/loadbalancer/l2"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/model"
)

// List implements agent.Lister.
func (f *Feature) List() agent.List {
	return agent.List{Name: "vips", Text: owners,
		Help: "who answers for the addresses of load balancers, and since when"}
}

// Rows implements agent.Lister.
func (f *Feature) Rows(*agent.Node, model.Snapshot) any {
	if a := f.announcer.Load(); a != nil {
		return a.look(time.Now())
	}
	return nil
}

// owners lists who owns which address of a load balancer, and since when.
func owners(raw json.RawMessage, now time.Time) (string, error) {
	if raw == nil {
		return "no address of a load balancer is to be answered for\n", nil
	}
	var rows []vipStatus
	if err := json.Unmarshal(raw, &rows); err != nil {
		return "", err
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ADDRESS\tSERVICE\tOWNER\tSINCE\tNOTE")
	for _, v := range rows {
		owner := v.Owner
		if owner == "" {
			owner = "nobody"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s ago\t%s\n", v.Addr, v.Service, owner,
			now.Sub(v.Since).Round(time.Second), v.Note)
	}
	err := t.Flush()
	return b.String(), err
}

// vipStatus is a line of `wayleave status --vips`.
type vipStatus struct {
	Addr    netip.Addr `json:"addr"`
	Service string     `json:"service"`
	// Owner is the node that answers, empty when none does, as seen from here.
	Owner string `json:"owner"`
	// Since is when the owner began, or when this agent first saw it so.
	Since time.Time `json:"since"`
	// Note is what is unusual: a dispute, a foreign machine.
	Note string `json:"note,omitempty"`
}

// look brings what is seen of owners up to date and returns it, sorted by address.
func (n *announcer) look(now time.Time) []vipStatus {
	r := n.sup.Report()
	standing := standings(n.node, r)
	n.mu.Lock()
	defer n.mu.Unlock()
	fresh := map[netip.Addr]vipStatus{}
	for _, v := range n.last.VIPs {
		s := vipStatus{Addr: v.Addr, Service: v.Service, Owner: loadbalancer.Owner(v.Addr, v.Eligible,
			standing), Since: now}
		i := slices.IndexFunc(r.VIPs, func(o l2.Owned) bool { return o.Addr == v.Addr })
		switch {
		case i >= 0:
			s.Owner, s.Since = n.node, r.VIPs[i].Since
		case s.Owner == n.node:
			s.Owner = "" // ours by the rules, and not answered yet
			fallthrough
		default:
			if old, ok := n.seen[v.Addr]; ok && old.Owner == s.Owner {
				s.Since = old.Since
			}
		}
		s.Note = note(v.Addr, r)
		fresh[v.Addr] = s
	}
	n.seen = fresh
	return slices.SortedFunc(maps.Values(fresh), func(a, b vipStatus) int { return a.Addr.Compare(b.Addr) })
}

func note(a netip.Addr, r speaker.Report) string {
	for _, d := range r.Disputes {
		if d.Addr == a {
			return "disputed with " + d.Peer
		}
	}
	for _, f := range r.Foreign {
		if f.Addr == a {
			return fmt.Sprintf("%s, which is no node, says on %s that it has the address", f.MAC, f.Interface)
		}
	}
	return ""
}

// standings are those of all nodes as the process sees them.
func standings(self string, r speaker.Report) func(string) loadbalancer.Standing {
	by := map[string]loadbalancer.Standing{}
	rank := func(live, willing bool) loadbalancer.Standing {
		switch {
		case !live:
			return loadbalancer.Dead
		case willing:
			return loadbalancer.Willing
		}
		return loadbalancer.Reluctant
	}
	for _, m := range r.Members {
		by[m.Name] = rank(m.Live, m.Willing)
	}
	by[self] = rank(r.Running && r.Ready, r.Willing && !r.Draining)
	return func(n string) loadbalancer.Standing { return by[n] }
}

// metrics are those of the process that answers for addresses while it is there, and what the API says of load
// balancers, counted when asked for.
type metrics struct {
	feature *Feature
	node    *agent.Node
}

var (
	servicesDesc = prometheus.NewDesc("wayleave_loadbalancer_services",
		"Services of type LoadBalancer by state: served (with an address), waiting.", []string{"state"}, nil)
	usedDesc = prometheus.NewDesc("wayleave_address_pool_used", "Addresses of a pool that Services have.",
		[]string{"pool"}, nil)
)

// Describe implements prometheus.Collector.
func (metrics) Describe(to chan<- *prometheus.Desc) {
	speaker.New(slog.New(slog.DiscardHandler)).Describe(to)
	to <- servicesDesc
	to <- usedDesc
}

// Collect gives also Services with and without an address, and the use of pools.
func (m metrics) Collect(to chan<- prometheus.Metric) {
	a := m.feature.announcer.Load()
	if a == nil {
		return
	}
	a.sup.Collect(to)
	c := loadbalancer.Count(m.node.Store.Snapshot(), m.node.Config.LoadBalancer.Default)
	to <- prometheus.MustNewConstMetric(servicesDesc, prometheus.GaugeValue, float64(c.Served), "served")
	to <- prometheus.MustNewConstMetric(servicesDesc, prometheus.GaugeValue, float64(c.Waiting), "waiting")
	for pool, n := range c.Used {
		to <- prometheus.MustNewConstMetric(usedDesc, prometheus.GaugeValue, float64(n), pool)
	}
}

// facts are for status.
func (n *announcer) facts(t loadbalancer.Tally) []string {
	r := n.sup.Report()
	live := 0
	for _, m := range r.Members {
		if m.Live {
			live++
		}
	}
	willing := "takes addresses"
	switch {
	case !r.Running:
		willing = "is starting"
	case r.Draining:
		willing = "gives its addresses to others"
	case !r.Willing:
		willing = "leaves addresses to others for now"
	}
	facts := []string{fmt.Sprintf("%d Services of the cluster have an address of %d pools, %d wait for one", t.Served,
		len(t.Used), t.Waiting),
		fmt.Sprintf("answers for %d addresses by ARP and NDP, %d of %d other nodes live, this one %s (status --vips "+
			"lists who owns what)", len(r.VIPs), live, len(r.Members), willing)}
	if n.leaves() {
		facts = append(facts, "leaves Services without a class to another load balancer, and does not answer for "+
			"their addresses (docs/migrate/metallb.md)")
	}
	return facts
}
