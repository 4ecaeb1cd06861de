package writeback

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"wayleave.dev/model"
)

func problemOf(name string) model.Problem {
	return model.Problem{Kind: "Service", Object: model.Name{Namespace: "default", Name: name}, Field: "spec",
		Reason: "it is wrong"}
}

// due takes all that is to be said at a time.
func (p *Problems) due(now time.Time) (names []string, then time.Time) {
	for {
		q, ok, then := p.next(now)
		if !ok {
			return names, then
		}
		names = append(names, q.Object.Name)
	}
}

// What is mended within the grace is not said; what stays wrong is, once, whoever finds it,
// and again after an hour or by a new writer.
func TestWhatIsMendedSoonIsNotSaid(t *testing.T) {
	p := NewProblems(slog.New(slog.DiscardHandler))
	start := time.Now()
	check := func(when string, after time.Duration, want ...string) {
		t.Helper()
		if got, _ := p.due(start.Add(after)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v is said, want %v", when, got, want)
		}
	}
	p.Set("ingress", "a", []model.Problem{problemOf("a")})
	p.Set("ingress", "b", []model.Problem{problemOf("b")})
	p.Set("source", "b", []model.Problem{problemOf("b")})
	check("at once", 0)
	if _, then := p.due(start); then.Before(start.Add(grace)) || then.After(time.Now().Add(grace)) {
		t.Errorf("the next one is at %s", then)
	}
	p.Set("ingress", "a", nil)
	check("after the grace", 2*grace, "b")
	p.Set("ingress", "a", []model.Problem{problemOf("a")})
	p.Set("ingress", "b", nil)
	p.Set("ingress", "b", []model.Problem{problemOf("b")})
	check("wrong again", 4*grace, "a")
	p.Again()
	check("by a new writer", 6*grace, "a", "b")
	p.mu.Lock()
	for q := range p.seen {
		p.seen[q] = start.Add(-repeatAfter)
	}
	p.swept = start.Add(-repeatAfter)
	p.mu.Unlock()
	p.Set("ingress", "b", nil)
	if p.Set("ingress", "b", []model.Problem{problemOf("b")}); len(p.seen) != 0 {
		t.Errorf("after an hour %d are remembered", len(p.seen))
	}
	check("after an hour", 8*grace, "b")
}

// Who says again what another writer said counts its Event.
func TestAnEventThatIsThereIsCounted(t *testing.T) {
	long := strings.Repeat("x", 199) + ".-" + strings.Repeat("y", 52)
	c := fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u1"}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: long, UID: "u2"}})
	for _, node := range []string{"node1", "node2", "node3"} {
		p := NewProblems(slog.New(slog.DiscardHandler))
		for _, name := range []string{"web", long} {
			if err := p.write(t.Context(), c, node, problemOf(name)); err != nil {
				t.Fatal(err)
			}
		}
		other := problemOf("web")
		other.Reason = node
		if err := p.write(t.Context(), c, node, other); err != nil {
			t.Fatal(err)
		}
	}
	l, err := c.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int32{}
	for _, e := range l.Items {
		count[e.InvolvedObject.Name[:3]+" "+e.Message] += e.Count
		if len(e.Name) > 253 || strings.Contains(e.Name, "-.") {
			t.Errorf("its name is %s", e.Name)
		}
	}
	if want := map[string]int32{"web spec: it is wrong": 3, "xxx spec: it is wrong": 3, "web spec: node1": 1,
		"web spec: node2": 1, "web spec: node3": 1}; fmt.Sprint(count) != fmt.Sprint(want) || len(l.Items) != 5 {
		t.Errorf("%d Events: %v", len(l.Items), count)
	}
}
