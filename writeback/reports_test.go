package writeback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/model"
)

func nodeProblem(node, reason string) model.Problem {
	return model.Problem{Kind: "Node", Object: model.Name{Name: node}, Field: "spec", Reason: reason}
}

// An agent writes no Event: what is wrong with its node is in its Lease, and the writer
// reads it there until the node takes it back.
func TestANodesProblemsReachTheWriterByItsLease(t *testing.T) {
	c := peerNodes()
	agent := NewProblems(slog.New(slog.DiscardHandler))
	agent.grace = time.Millisecond
	lease := NodeLease{Client: c, Namespace: PeersNamespace, Node: "node1"}
	failed := false
	background(t, func(ctx context.Context) {
		agent.Tell(ctx, func(q model.Problem) bool { return Reportable(q, "node1") },
			func(ctx context.Context, list []model.Problem) error {
				if !failed {
					failed = true
					return errors.New("the API server is away")
				}
				return lease.Report(ctx, list)
			})
	})
	var mu sync.Mutex
	got := map[string][]model.Problem{}
	r := &NodeReports{Client: c, Namespace: PeersNamespace, Log: slog.New(slog.DiscardHandler),
		Problems: func(node string, list []model.Problem) {
			mu.Lock()
			defer mu.Unlock()
			got[node] = list
		}}
	background(t, func(ctx context.Context) { _ = r.Run(ctx) })
	agent.Set("service", "x", []model.Problem{nodeProblem("node1", "no uplink"), nodeProblem("node2", "not mine"),
		problemOf("web")})
	has := func(want string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprint(got["node1"]) == want
		}
	}
	soon(t, "the writer knows what is wrong with node1, and nothing else",
		has("["+nodeProblem("node1", "no uplink").Error()+"]"))
	agent.Set("service", "x", nil)
	soon(t, "the node took it back", has("[]"))
	for _, a := range c.Actions() {
		if a.GetResource().Resource == "events" {
			t.Errorf("an agent asked to %s Events", a.GetVerb())
		}
	}
}

// Whatever a captured node writes into its Lease, the writer says of other objects nothing,
// and of this node not more than the bounds.
func TestANodeSpeaksForItselfOnly(t *testing.T) {
	var list []reported
	for i := range 100 {
		list = append(list, reported{Reason: fmt.Sprint(i) + strings.Repeat("x", 10_000)})
	}
	for _, r := range []reported{{Kind: "Node", Name: "node2", Reason: "r"}, {Kind: "Service", Namespace: "default",
		Name: "web", Reason: "r"},
		{Kind: "Ingress", Namespace: "default", Name: "web", Field: "spec.rules", Reason: "r"},
		{Reason: "r", Event: "Bad reason"}} {
		list = append([]reported{r}, list...)
	}
	raw, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	node, got, ok := ReadReport(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("node1"),
		Annotations: map[string]string{problemsAnnotation: string(raw)}}})
	if !ok || node != "node1" || len(got) == 0 || len(got) > maxReported {
		t.Fatalf("%d problems of %s, %v", len(got), node, ok)
	}
	for _, q := range got {
		if q.Kind != "Node" || q.Object.Name != "node1" || len(q.Reason) > maxReportText || q.Event != "" {
			t.Errorf("taken: %.80s", q.Error())
		}
	}
	for _, raw := range []string{"", "{", "[1]", "null", `{"a":1}`} {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("node1"),
			Annotations: map[string]string{problemsAnnotation: raw}}}
		if _, got, ok := ReadReport(l); !ok || len(got) != 0 {
			t.Errorf("%q gives %v", raw, got)
		}
	}
	if _, _, ok := ReadReport(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: askLease}}); ok {
		t.Error("the Lease of the writer was taken for a node's")
	}
}

// The text of a problem is free: a flood of different ones about one object ends in a
// bounded number of Events.
func TestEventsAboutOneObjectAreBounded(t *testing.T) {
	p := NewProblems(slog.New(slog.DiscardHandler))
	now, said := time.Now(), 0
	for i := range 40 {
		var list []model.Problem
		for j := range maxReported {
			list = append(list, nodeProblem("node1", fmt.Sprint(i, j)))
		}
		p.Set("node", "node1", list)
		names, _ := p.due(now.Add(time.Minute))
		said += len(names)
	}
	if said != mostOfObject {
		t.Errorf("%d Events about one node in an hour, %d are allowed", said, mostOfObject)
	}
	p.Set("node", "node2", []model.Problem{nodeProblem("node2", "x")})
	if names, _ := p.due(now.Add(time.Minute)); len(names) != 1 {
		t.Errorf("another node's problem is not said: %v", names)
	}
}

// The writer sees no kubelet: it goes by what most nodes report.
func TestTheKubeletsDNSIsThatOfMostNodes(t *testing.T) {
	c := peerNodes()
	var leases []*coordinationv1.Lease
	if _, ok := AgreedDNS(leases); ok {
		t.Error("nothing was reported")
	}
	for node, vip := range map[string]string{"node1": "192.0.2.66", "node2": "10.96.0.10", "node3": "10.96.0.10"} {
		l := NodeLease{Client: c, Namespace: PeersNamespace, Node: node}
		if err := l.Kubelet(t.Context(), KubeletDNS{VIPs: []netip.Addr{netip.MustParseAddr(vip)},
			Domain: "c.example"}); err != nil {
			t.Fatal(err)
		}
		have, err := l.Set(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, have)
	}
	leases = append(leases, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: leaseOf("node4"),
		Annotations: map[string]string{kubeletAnnotation: "{"}}})
	if got, ok := AgreedDNS(leases); !ok || len(got.VIPs) != 1 || got.VIPs[0].String() != "10.96.0.10" ||
		got.Domain != "c.example" {
		t.Errorf("agreed on %+v, %v", got, ok)
	}
}
