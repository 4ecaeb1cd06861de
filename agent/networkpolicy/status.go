package networkpolicy

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// policies is the feature at work, for status and metrics.
type policies struct {
	mode networkpolicy.Mode
	// cut counts the connections that were.
	cut atomic.Int64
}

// isolated is an isolated pod of this node.
type isolated struct {
	Pod       string     `json:"pod"`
	Addr      netip.Addr `json:"addr"`
	Direction string     `json:"direction"`
	// Policies isolate it: a packet was dropped because none of them allows it.
	Policies []string `json:"policies"`
	Dropped  uint64   `json:"dropped"`
}

// look lists the isolated pods with what was dropped.
func (p *policies) look(ctx context.Context, snap model.Snapshot) []isolated {
	drops, err := p.mode.Drops(ctx)
	if err != nil {
		drops = nil // the loop has the error, too
	}
	pods := p.mode.Isolated()
	out := make([]isolated, 0, len(pods))
	for k, e := range pods {
		s := isolated{Pod: "?", Addr: k.Addr, Direction: k.Direction.String(),
			Dropped: drops[networkpolicy.End{Direction: k.Direction, Addr: k.Addr}]}
		if pod, ok := snap.PodByIP(k.Addr); ok {
			s.Pod = pod.Name.String()
		}
		for _, n := range e.Policies {
			s.Policies = append(s.Policies, n.String())
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b isolated) int {
		return cmp.Or(cmp.Compare(a.Pod, b.Pod), a.Addr.Compare(b.Addr), cmp.Compare(a.Direction, b.Direction))
	})
	return out
}

// Facts implements agent.Reporter.
func (f *Feature) Facts(_ *agent.Node, snap model.Snapshot) []string {
	p := f.enforced.Load()
	if p == nil {
		return nil
	}
	pods := map[netip.Addr]bool{}
	for k := range p.mode.Isolated() {
		pods[k.Addr] = true
	}
	return []string{fmt.Sprintf("%d policies, %d addresses of this node's pods isolated, %d connections cut",
		snap.Count(model.NetworkPolicyKind), len(pods), p.cut.Load())}
}

// List implements agent.Lister.
func (f *Feature) List() agent.List {
	return agent.List{Name: "policies", Text: isolatedPods,
		Help: "which pods of this node are isolated, by which policies, and what was dropped"}
}

// Rows implements agent.Lister.
func (f *Feature) Rows(_ *agent.Node, snap model.Snapshot) any {
	if p := f.enforced.Load(); p != nil {
		return p.look(context.Background(), snap)
	}
	return nil
}

// isolatedPods lists this node's isolated pods, by what, and what was dropped.
func isolatedPods(raw json.RawMessage, _ time.Time) (string, error) {
	if raw == nil {
		return "no pod of this node is isolated by a policy\n", nil
	}
	var rows []isolated
	if err := json.Unmarshal(raw, &rows); err != nil {
		return "", err
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POD\tADDRESS\tDIRECTION\tDROPPED\tISOLATED BY")
	for _, p := range rows {
		by := strings.Join(p.Policies, ", ")
		if by == "" {
			by = "all policies of its namespace, until the pod is known"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", p.Pod, p.Addr, p.Direction, p.Dropped, by)
	}
	err := t.Flush()
	return b.String(), err
}

// Metrics implements agent.Metered.
func (f *Feature) Metrics(n *agent.Node) []prometheus.Collector {
	return []prometheus.Collector{drops{&f.enforced, n.Store}}
}

// drops counts what was dropped, by pod, direction and policy: as many series as this node has isolated pods, times
// two.
type drops struct {
	enforced *atomic.Pointer[policies]
	store    *model.Store
}

// Describe implements prometheus.Collector.
func (drops) Describe(c chan<- *prometheus.Desc) { c <- droppedDesc() }

func droppedDesc() *prometheus.Desc {
	return prometheus.NewDesc("wayleave_networkpolicy_dropped_packets_total", "Packets that policies dropped at a "+
		"pod of this node; policies are those that isolate it, none of which allowed them.",
		[]string{"namespace", "pod", "address", "direction", "policies"}, nil)
}

// longestPolicies bounds the label that names policies.
const longestPolicies = 200

// Collect implements prometheus.Collector.
func (m drops) Collect(c chan<- prometheus.Metric) {
	p := m.enforced.Load()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	snap := m.store.Snapshot()
	for _, s := range p.look(ctx, snap) {
		var ns, name string
		if pod, ok := snap.PodByIP(s.Addr); ok {
			ns, name = pod.Name.Namespace, pod.Name.Name
		}
		by := ""
		for i, n := range s.Policies {
			if i > 0 {
				by += ","
			}
			if by += n; len(by) > longestPolicies {
				by = by[:longestPolicies] + "…"
				break
			}
		}
		c <- prometheus.MustNewConstMetric(droppedDesc(), prometheus.CounterValue, float64(s.Dropped), ns, name,
			s.Addr.String(), s.Direction, by)
	}
}
