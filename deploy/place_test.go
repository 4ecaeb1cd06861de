package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// In another namespace, the chart has what belongs to the kubelets' DNS name and to the nodes' Leases where it was, and
// everything else in the namespace of the release, with the same rights for its accounts.
func TestTheChartInstallsIntoAnyNamespace(t *testing.T) {
	const place = "net"
	for _, values := range []map[string]any{nil,
		{"ingress": map[string]any{"nodeSelector": map[string]any{"a": "b"}}}} {
		rendered, err := renderIn(t, place, "templates/wayleave.yaml", values)
		if err != nil {
			t.Fatal(err)
		}
		var elsewhere []string
		for _, o := range objectsIn(t, rendered, false) {
			u := unstructured.Unstructured{Object: o}
			if ns := u.GetNamespace(); ns != "" && ns != place && ns != "wayleave-peers" {
				elsewhere = append(elsewhere, ns+" "+u.GetKind()+" "+u.GetName())
			}
			if raw := fmt.Sprint(o); strings.Contains(raw, "serviceaccount:kube-system") {
				t.Errorf("%s %s names an account of kube-system: %s", u.GetKind(), u.GetName(), raw)
			}
		}
		if want := []string{"kube-system Role wayleave", "kube-system RoleBinding wayleave"}; !slices.Equal(
			elsewhere, want) {
			t.Errorf("in other namespaces: %v; want %v", elsewhere, want)
		}
		before := renderChart(t, values)
		for _, account := range []string{"wayleave", "wayleave-writer", "wayleave-ingress"} {
			for _, ns := range []string{"default", "kube-system", "wayleave-peers", place} {
				got := rights(t, rendered, Account{place, account}, ns)
				if want := rights(t, before, Account{"kube-system", account}, ns); !slices.Equal(got, want) {
					t.Errorf("%s may in %s %v; in kube-system it may %v", account, ns, got, want)
				}
				if none := rights(t, rendered, Account{"kube-system", account}, ns); len(none) > 0 {
					t.Errorf("kube-system/%s still may in %s %v", account, ns, none)
				}
			}
		}
	}
}

// Wherever the Pod- or ServiceMonitor and the notes are, they follow the release.
func TestMonitorsFollowTheNamespace(t *testing.T) {
	for _, kind := range []string{"podMonitor", "serviceMonitor"} {
		on := map[string]any{kind: map[string]any{"enabled": true, "interval": "10s",
			"labels": map[string]any{"team": "x"}}}
		file := "templates/" + strings.ToLower(kind) + ".yaml"
		if _, err := renderIn(t, "net", file, on); err == nil || !strings.Contains(err.Error(), "metrics.port") {
			t.Errorf("%s without a port: %v", kind, err)
		}
		on["settings"] = "metrics: {port: 10247}\n"
		raw, err := renderIn(t, "net", file, on)
		if err != nil || bytes.Contains(raw, []byte("kube-system")) ||
			!bytes.Contains(raw, []byte("namespace: net\n")) ||
			!bytes.Contains(raw, []byte("10247")) || !bytes.Contains(raw, []byte("team: x")) {
			t.Errorf("%s: %v: %s", kind, err, raw)
		}
		if raw, err := renderIn(t, "net", file, nil); err != nil || len(bytes.TrimSpace(raw)) > 0 {
			t.Errorf("%s is on by default: %v: %s", kind, err, raw)
		}
	}
	both := map[string]any{"settings": "metrics: {port: 1}\n", "podMonitor": map[string]any{"enabled": true},
		"serviceMonitor": map[string]any{"enabled": true}}
	if _, err := renderIn(t, "net", "templates/servicemonitor.yaml", both); err == nil {
		t.Error("both monitors at once are accepted")
	}
	if raw, err := renderIn(t, "net", "templates/NOTES.txt", nil); err != nil ||
		bytes.Contains(raw, []byte("kube-system")) {
		t.Errorf("notes: %v: %s", err, raw)
	}
}

// term is a node selector term by key, operator and values.
func terms(t *testing.T, a *corev1.Affinity) (out []string) {
	t.Helper()
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		var parts []string
		for _, e := range append(term.MatchExpressions, term.MatchFields...) {
			parts = append(parts, fmt.Sprint(e.Key, " ", e.Operator, " ", e.Values))
		}
		slices.Sort(parts)
		out = append(out, strings.Join(parts, " and "))
	}
	slices.Sort(out)
	return out
}

// An agent runs where both the affinity and the division of Ingress nodes allow it: each of the operator's terms is
// joined with each of the chart's.
func TestAffinityOfPods(t *testing.T) {
	affinity := map[string]any{}
	raw := `{"nodeAffinity": {
		"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {
			"matchExpressions": [{"key": "p", "operator": "Exists"}]}}],
		"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
			{"matchExpressions": [{"key": "x", "operator": "In", "values": ["1"]}]},
			{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}}}`
	if err := json.Unmarshal([]byte(raw), &affinity); err != nil {
		t.Fatal(err)
	}
	mine := []string{"metadata.name In [n1]", "x In [1]"}
	split := map[string]any{"nodeSelector": map[string]any{"edge": "yes", "zone": "a"}}
	for _, tc := range []struct {
		affinity, ingress map[string]any
		outside, inside   []string
	}{
		{nil, nil, nil, nil},
		{nil, split, []string{"edge NotIn [yes]", "zone NotIn [a]"}, nil},
		{affinity, nil, mine, nil},
		{affinity, split, []string{"edge NotIn [yes] and metadata.name In [n1]", "edge NotIn [yes] and x In [1]",
			"metadata.name In [n1] and zone NotIn [a]", "x In [1] and zone NotIn [a]"}, mine},
	} {
		values := map[string]any{"labels": map[string]any{"team": "net"}, "podLabels": map[string]any{"cost": "1"}}
		if tc.affinity != nil {
			values["affinity"] = tc.affinity
		}
		if tc.ingress != nil {
			values["ingress"] = tc.ingress
		}
		for _, w := range workloadsOf(t, renderChart(t, values)) {
			if w.Labels["team"] != "net" || w.Spec.Template.Labels["cost"] != "1" {
				t.Errorf("%s has the labels %v, its pods %v", w.Name, w.Labels, w.Spec.Template.Labels)
			}
			a := w.Spec.Template.Spec.Affinity
			want := map[string][]string{"wayleave": tc.outside, "wayleave-ingress": tc.inside}[w.Name]
			if got := terms(t, a); !slices.Equal(got, want) {
				t.Errorf("%s with affinity %v, ingress %v: %v; want %v", w.Name, tc.affinity != nil,
					tc.ingress, got, want)
			}
			prefers := a != nil && a.NodeAffinity != nil &&
				len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 1
			if prefers != (tc.affinity != nil || w.Name == "wayleave-writer") {
				t.Errorf("%s: the preference is there: %v", w.Name, prefers)
			}
		}
	}
}
