package deploy

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// renderChart renders the objects of the chart as Helm does, whose engine is text/template, with values in place of the
// defaults.
func renderChart(t *testing.T, values map[string]any) []byte {
	t.Helper()
	out, err := renderTemplate(t, "templates/wayleave.yaml", values)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func renderTemplate(t *testing.T, name string, values map[string]any) ([]byte, error) {
	t.Helper()
	return renderIn(t, "kube-system", name, values)
}

// renderIn renders a template for a release in a namespace.
func renderIn(t *testing.T, namespace, name string, values map[string]any) ([]byte, error) {
	t.Helper()
	files, err := Chart()
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := yaml.Unmarshal(files["values.yaml"], &v); err != nil {
		t.Fatal(err)
	}
	maps.Copy(v, values)
	tmpl, err := template.New("chart").Funcs(helmFuncs()).Parse(string(files[name]))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	err = tmpl.Execute(&got, map[string]any{"Values": v, "Release": map[string]any{"Name": "net", "Service": "Helm",
		"Namespace": namespace},
		"Chart": map[string]any{"Name": "wayleave", "Version": "0.0.0-dev", "AppVersion": "dev"}})
	return got.Bytes(), err
}

// helmFuncs are Helm's functions that the chart calls.
func helmFuncs() template.FuncMap {
	return template.FuncMap{
		"indent":    func(n int, s string) string { return indent(s, n) },
		"nindent":   func(n int, s string) string { return "\n" + indent(s, n) },
		"dict":      func() map[string]any { return map[string]any{} },
		"list":      func(v ...any) []any { return v },
		"lookup":    func(_, _, _, _ string) map[string]any { return map[string]any{} },
		"hasKey":    func(m map[string]any, key string) bool { return m[key] != nil },
		"quote":     func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
		"sha256sum": func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) },
		"fail":      func(s string) (string, error) { return "", errors.New(s) },
		"int":       func(v any) int { n, _ := strconv.Atoi(fmt.Sprint(v)); return n },
		"dig": func(a, b string, d any, m map[string]any) any {
			if v, ok := m[a].(map[string]any); ok && v[b] != nil {
				return v[b]
			}
			return d
		},
		"fromYaml": func(s string) (out map[string]any, err error) {
			err = yaml.Unmarshal([]byte(s), &out)
			return out, err
		},
		"toYaml": func(v any) (string, error) {
			raw, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(raw), "\n"), err
		},
		"toJson": func(v any) (string, error) {
			raw, err := json.Marshal(v)
			return string(raw), err
		},
	}
}

// objectsIn decodes a manifest. What Helm adds to each object is removed if bare is set.
func objectsIn(t *testing.T, manifest []byte, bare bool) (out []map[string]any) {
	t.Helper()
	for _, d := range bytes.Split(manifest, []byte("\n---\n")) {
		var o map[string]any
		if err := yaml.UnmarshalStrict(d, &o); err != nil {
			t.Fatalf("%v: %s", err, d)
		}
		if bare {
			remove(o, "metadata", "labels", "helm.sh/chart")
			remove(o, "metadata", "labels", "app.kubernetes.io/instance")
			remove(o, "metadata", "labels", "app.kubernetes.io/managed-by")
			remove(o, "spec", "template", "metadata", "annotations", "checksum/config")
		}
		out = append(out, o)
	}
	return out
}

// remove deletes a field, and the maps that are empty without it.
func remove(o map[string]any, path ...string) {
	if len(path) > 1 {
		sub, _ := o[path[0]].(map[string]any)
		if sub == nil {
			return
		}
		if remove(sub, path[1:]...); len(sub) > 0 {
			return
		}
	}
	delete(o, path[0])
}

// The chart with its default values has the objects of the manifest, and each has the labels that Helm recommends.
func TestTheChartRendersTheManifest(t *testing.T) {
	m, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	rendered := renderChart(t, nil)
	want, got := objectsIn(t, m, false), objectsIn(t, rendered, true)
	if len(got) != len(want) {
		t.Fatalf("%d objects, want %d", len(got), len(want))
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			a, _ := yaml.Marshal(got[i])
			b, _ := yaml.Marshal(want[i])
			t.Errorf("object %d is\n%s\nwant\n%s", i, a, b)
		}
	}
	for _, o := range objectsIn(t, rendered, false) {
		labels, _ := o["metadata"].(map[string]any)["labels"].(map[string]any)
		if labels["helm.sh/chart"] != "wayleave-0.0.0-dev" || labels["app.kubernetes.io/instance"] != "net" ||
			labels["app.kubernetes.io/managed-by"] != "Helm" {
			t.Errorf("%v %v has the labels %v", o["kind"], o["metadata"], labels)
		}
	}
}

// workloadsOf decodes the DaemonSets and the Deployment strictly.
func workloadsOf(t *testing.T, manifest []byte) (out []appsv1.DaemonSet) {
	t.Helper()
	for _, d := range bytes.Split(manifest, []byte("\n---\n")) {
		var err error
		var ds appsv1.DaemonSet
		switch {
		case bytes.Contains(d, []byte("\nkind: DaemonSet\n")):
			err = yaml.UnmarshalStrict(d, &ds)
		case bytes.Contains(d, []byte("\nkind: Deployment\n")):
			var dep appsv1.Deployment
			err = yaml.UnmarshalStrict(d, &dep)
			ds.ObjectMeta, ds.Spec.Template = dep.ObjectMeta, dep.Spec.Template
		default:
			continue
		}
		if err != nil {
			t.Fatalf("%v: %s", err, d)
		}
		out = append(out, ds)
	}
	return out
}

// Values of scheduling, images and resources reach every pod that they are about, with and without a DaemonSet of its
// own for Ingress.
func TestValuesOfPods(t *testing.T) {
	for _, ingress := range []map[string]any{{}, {"nodeSelector": map[string]any{"edge": "yes"}}} {
		all := workloadsOf(t, renderChart(t, map[string]any{
			"ingress":          ingress,
			"imagePullSecrets": []any{map[string]any{"name": "registry"}},
			"nodeSelector":     map[string]any{"net": "wayleave", "edge": "no"},
			"tolerations":      []any{map[string]any{"key": "only", "operator": "Exists"}},
			"podAnnotations":   map[string]any{"a/b": "1: c"},
			"resources": map[string]any{"agent": map[string]any{"limits": map[string]any{"memory": "3Gi"}}, "dns": nil,
				"proxy": nil, "writer": map[string]any{}, "discover": nil},
		}))
		if want := 2 + len(ingress); len(all) != want {
			t.Fatalf("%d workloads, want %d", len(all), want)
		}
		for _, w := range all {
			spec := w.Spec.Template.Spec
			if len(spec.ImagePullSecrets) != 1 || spec.ImagePullSecrets[0].Name != "registry" ||
				w.Spec.Template.Annotations["a/b"] != "1: c" ||
				len(w.Spec.Template.Annotations["checksum/config"]) != 64 {
				t.Errorf("%s: %+v, annotations %v", w.Name, spec.ImagePullSecrets, w.Spec.Template.Annotations)
			}
			if w.Name == "wayleave-writer" {
				continue
			}
			edge := map[string]string{"wayleave": "no", "wayleave-ingress": "yes"}[w.Name]
			if len(spec.Tolerations) != 1 || spec.Tolerations[0].Key != "only" ||
				spec.NodeSelector["net"] != "wayleave" ||
				spec.NodeSelector["edge"] != edge || spec.Containers[0].Resources.Limits.Memory().String() != "3Gi" {
				t.Errorf("%s: %v, %v, %v", w.Name, spec.Tolerations, spec.NodeSelector, spec.Containers[0].Resources)
			}
		}
	}
}

// Other settings start new pods.
func TestTheChecksumFollowsTheSettings(t *testing.T) {
	sum := func(values map[string]any) string {
		return workloadsOf(t, renderChart(t, values))[0].Spec.Template.Annotations["checksum/config"]
	}
	same := sum(nil)
	if sum(nil) != same || sum(map[string]any{"settings": "mode: ipvs\n"}) == same ||
		sum(map[string]any{"ingress": map[string]any{"enabled": false}}) == same {
		t.Error("the checksum does not follow the settings")
	}
}

func TestThePodMonitorNeedsAPort(t *testing.T) {
	on := map[string]any{"podMonitor": map[string]any{"enabled": true, "interval": "10s",
		"labels": map[string]any{"team": "x"}}}
	if _, err := renderTemplate(t, "templates/podmonitor.yaml", on); err == nil || !strings.Contains(err.Error(),
		"metrics.port") {
		t.Errorf("without a port: %v", err)
	}
	on["settings"] = "metrics: {port: 10247}\n"
	raw, err := renderTemplate(t, "templates/podmonitor.yaml", on)
	var o map[string]any
	if err := errors.Join(err, yaml.UnmarshalStrict(raw, &o)); err != nil || o["kind"] != "PodMonitor" ||
		!bytes.Contains(raw, []byte("${1}:10247")) || !bytes.Contains(raw, []byte("team: x")) {
		t.Errorf("%v: %s", err, raw)
	}
	if raw, err := renderTemplate(t, "templates/podmonitor.yaml", nil); err != nil || len(bytes.TrimSpace(raw)) > 0 {
		t.Errorf("it is on by default: %v: %s", err, raw)
	}
}

// Each value has a comment and a schema; Helm refuses others.
func TestEveryValueIsDescribed(t *testing.T) {
	files, err := Chart()
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Additional bool           `json:"additionalProperties"`
		Properties map[string]any `json:"properties"`
	}
	schema.Additional = true
	if err := json.Unmarshal(files["values.schema.json"], &schema); err != nil || schema.Additional {
		t.Errorf("schema: %v, unknown values allowed: %v", err, schema.Additional)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(files["values.yaml"], &values); err != nil {
		t.Fatal(err)
	}
	delete(schema.Properties, "global")
	if !slices.Equal(slices.Sorted(maps.Keys(values)), slices.Sorted(maps.Keys(schema.Properties))) {
		t.Errorf("values.yaml has %v, the schema %v", values, schema.Properties)
	}
	for key := range values {
		if !bytes.Contains(files["values.yaml"], []byte(".\n"+key+":")) {
			t.Errorf("values.yaml: %s has no comment", key)
		}
	}
	if _, err := renderTemplate(t, "templates/NOTES.txt", nil); err != nil {
		t.Error(err)
	}
}
