// Package judge puts the Helm chart to Helm's own linter, schema validation and template engine, and what they render
// to the strict decoder of Kubernetes' types. It is a module of its own, so that Helm does not reach the product.
package judge

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// packed returns the chart's archive: that of a release if WAYLEAVE_CHART names one, otherwise ../chart.
func packed(t *testing.T) []byte {
	t.Helper()
	if file := os.Getenv("WAYLEAVE_CHART"); file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	err := filepath.WalkDir("../chart", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel("../chart", file)
		if err != nil {
			return err
		}
		if err := archive.WriteHeader(&tar.Header{Name: "wayleave/" + name, Mode: 0o644,
			Size: int64(len(raw))}); err != nil {
			return err
		}
		_, err = archive.Write(raw)
		return err
	})
	if err := errors.Join(err, archive.Close(), zip.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadArchive(bytes.NewReader(packed(t)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// parse reads values as they are in a file of `helm install -f`.
func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

// render renders the chart for a release in a namespace, as `helm install` does. apps are DaemonSets of the cluster.
func render(t *testing.T, c *chart.Chart, namespace string, values map[string]any, apps ...runtime.Object) (
	[]*unstructured.Unstructured, error) {
	t.Helper()
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "net",
		Namespace: namespace, Revision: 1,
		IsInstall: true}, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.RenderWithClientProvider(c, all, cluster{apps})
	if err != nil {
		return nil, err
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme,
		json.SerializerOptions{Yaml: true, Strict: true})
	var out []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, "NOTES.txt") {
			continue
		}
		for _, d := range strings.Split("\n"+files[name], "\n---\n") {
			if strings.TrimSpace(d) == "" {
				continue
			}
			o := &unstructured.Unstructured{}
			d += "\n" // of the separator
			if err := yaml.UnmarshalStrict([]byte(d), &o.Object); err != nil {
				return nil, fmt.Errorf("%s: %w: %s", name, err, d)
			}
			// The kinds of the Prometheus operator are not among Kubernetes' types.
			if o.GroupVersionKind().Group != "monitoring.coreos.com" {
				if _, _, err := strict.Decode([]byte(d), nil, nil); err != nil {
					return nil, fmt.Errorf("%s: %s %s: %w", name, o.GetKind(), o.GetName(), err)
				}
			}
			out = append(out, o)
		}
	}
	return out, nil
}

// cluster is what the template function lookup sees.
type cluster struct{ apps []runtime.Object }

// GetClientFor implements engine.ClientProvider.
func (c cluster) GetClientFor(version, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	if version != "apps/v1" || kind != "DaemonSet" {
		return nil, false, fmt.Errorf("lookup of %s %s", version, kind)
	}
	what := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{what: "DaemonSetList"}, c.apps...)
	return client.Resource(what), true, nil
}

func daemonSet(namespace, name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "DaemonSet",
		"metadata": map[string]any{"namespace": namespace, "name": name}}}
}

// good has for each value of the chart something that it may be.
func good() map[string]string {
	return map[string]string{
		"image":            "image: registry.example/net/wayleave:v0.1.0@sha256:" + strings.Repeat("a", 64),
		"imagePullSecrets": "imagePullSecrets: [{name: registry}]",
		"nodeSelector":     "nodeSelector: {kubernetes.io/os: linux}",
		"affinity": "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: " +
			"[{matchExpressions: [{key: a, operator: Exists}]}, {matchFields: [{key: metadata.name, operator: In, " +
			"values: [node1]}]}]}, " +
			"preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: b, " +
			"operator: Exists}]}}]}}",
		"writerAffinity": "writerAffinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: " +
			"[{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app.kubernetes.io/name: " +
			"wayleave-writer}}}]}}",
		"tolerations":    "tolerations: [{key: only, operator: Exists, effect: NoSchedule}]",
		"resources":      "resources: {agent: {limits: {memory: 3Gi}}, dns: {requests: {cpu: 1}}, writer: null}",
		"podAnnotations": "podAnnotations: {example.com/a: '1: b'}",
		"podLabels":      "podLabels: {cost: 'true'}",
		"labels":         "labels: {team: '1'}",
		"podMonitor": "podMonitor: {enabled: true, interval: 10s, labels: {release: x}}\nsettings: 'metrics: " +
			"{port: 10247}'",
		"serviceMonitor": "serviceMonitor: {enabled: true, interval: 1m, labels: {release: x}}\nsettings: 'metrics: " +
			"{port: 10247}'",
		"ingress":  "ingress: {nodeSelector: {example.com/edge: 'true'}}",
		"settings": "settings: |\n  mode: ipvs\n  podnetwork: {cniBinDir: /opt/cni}\n  ingress: {enabled: false}",
	}
}

// worst returns what the linter has to say: Helm asks for an icon at the level below.
func worst(l support.Linter) (out []string) {
	for _, m := range l.Messages {
		if m.Severity > support.InfoSev {
			out = append(out, m.Error())
		}
	}
	return out
}

func TestHelmLintsTheChart(t *testing.T) {
	dir := t.TempDir()
	if err := chartutil.Expand(dir, bytes.NewReader(packed(t))); err != nil {
		t.Fatal(err)
	}
	all := good()
	all["defaults"] = "{}"
	for _, name := range slices.Sorted(maps.Keys(all)) {
		version := &chartutil.KubeVersion{Version: "v1.36.0", Major: "1", Minor: "36"}
		if got := worst(lint.AllWithKubeVersionAndSchemaValidation(filepath.Join(dir, "wayleave"),
			parse(t, all[name]), "net",
			version, false)); len(got) > 0 {
			t.Errorf("%s: %s", name, strings.Join(got, "\n"))
		}
	}
}

// Helm renders what `kubectl apply -f deploy/wayleave.yaml` installs, and its labels.
func TestHelmRendersTheManifest(t *testing.T) {
	got, err := render(t, load(t), "kube-system", nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("../wayleave.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{}
	for _, d := range strings.Split(string(raw), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(d+"\n"), &o.Object); err != nil {
			t.Fatal(err)
		}
		want[id(o)] = o.Object
	}
	for _, o := range got {
		for _, own := range []string{"helm.sh/chart", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"} {
			if o.GetLabels()[own] == "" {
				t.Errorf("%s has no label %s", id(o), own)
			}
			unset(o.Object, "metadata", "labels", own)
		}
		unset(o.Object, "spec", "template", "metadata", "annotations", "checksum/config")
		if os.Getenv("WAYLEAVE_CHART") != "" {
			continue // of another version
		}
		if !reflect.DeepEqual(o.Object, want[id(o)]) {
			t.Errorf("%s differs: %s", id(o), firstDifference("", o.Object, want[id(o)]))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d objects, want %d", len(got), len(want))
	}
}

// firstDifference names a field that differs.
func firstDifference(at string, a, b any) string {
	x, isMap := a.(map[string]any)
	y, alsoMap := b.(map[string]any)
	if !isMap || !alsoMap {
		return fmt.Sprintf("%s is %#v, want %#v", at, a, b)
	}
	for key := range maps.All(x) {
		if !reflect.DeepEqual(x[key], y[key]) {
			return firstDifference(at+"."+key, x[key], y[key])
		}
	}
	return fmt.Sprintf("%s has %d fields, want %d", at, len(x), len(y))
}

func id(o *unstructured.Unstructured) string {
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// unset removes a field, and the maps that are empty without it.
func unset(o map[string]any, path ...string) {
	if len(path) > 1 {
		sub, _ := o[path[0]].(map[string]any)
		if unset(sub, path[1:]...); len(sub) > 0 || sub == nil {
			return
		}
	}
	delete(o, path[0])
}

// Each value renders alone, with each other one, and all at once, in each namespace, to objects that Kubernetes' strict
// decoder takes.
func TestEachValueRenders(t *testing.T) {
	c, all := load(t), good()
	names := slices.Sorted(maps.Keys(all))
	if documented := slices.Sorted(maps.Keys(c.Values)); !slices.Equal(names, documented) {
		t.Fatalf("this test has %v; values.yaml has %v", names, documented)
	}
	for i, a := range names {
		for _, b := range names[i:] {
			values := parse(t, all[a])
			maps.Copy(values, parse(t, all[b]))
			if strings.Contains(a+b, "podMonitorserviceMonitor") {
				continue // refused, see below
			}
			if strings.HasSuffix(a, "Monitor") || strings.HasSuffix(b, "Monitor") {
				values["settings"] = "metrics: {port: 10247}"
			}
			for _, namespace := range []string{"kube-system", "net"} {
				if _, err := render(t, c, namespace, values); err != nil {
					t.Errorf("%s and %s in %s: %v", a, b, namespace, err)
				}
			}
		}
	}
	values := map[string]any{}
	for _, name := range names {
		if name != "serviceMonitor" {
			maps.Copy(values, parse(t, all[name]))
		}
	}
	values["settings"] = "metrics: {port: 10247}"
	if _, err := render(t, c, "net", values); err != nil {
		t.Errorf("all values: %v", err)
	}
}

// What a value may not be is refused by values.schema.json or by a template, before anything is installed.
func TestBadValuesAreRefused(t *testing.T) {
	c := load(t)
	for _, bad := range []string{
		"imagee: x", "image: ''", "image: 7", "image: null", "imagePullSecrets: [registry]",
		"imagePullSecrets: [{name: a, x: b}]",
		"nodeSelector: {a: true}", "nodeSelector: [a]", "affinity: {podAffinity: {}}", "affinity: []",
		"affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}",
		"affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{a: []}]}}}",
		"writerAffinity: x", "tolerations: Exists", "tolerations: [Exists]", "resources: {agnt: {}}",
		"resources: {agent: 1Gi}",
		"podAnnotations: {a: 1}", "podLabels: {app.kubernetes.io/name: x}", "labels: {helm.sh/chart: x}",
		"labels: {a: 1}",
		"podMonitor: {enabled: yes please}", "podMonitor: {interval: often}", "podMonitor: {enabled: true}",
		"serviceMonitor: {port: 1}", "serviceMonitor: {enabled: true}",
		"podMonitor: {enabled: true}\nserviceMonitor: {enabled: true}\nsettings: 'metrics: {port: 1}'",
		"ingress: {nodeselector: {}}", "ingress: {enabled: 1}", "ingress: {nodeSelector: {a: 1}}",
		"settings: {mode: ipvs}",
		"settings: null",
	} {
		if _, err := render(t, c, "net", parse(t, bad)); err == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
	if _, err := render(t, c, "wayleave-peers", nil); err == nil || !strings.Contains(err.Error(),
		"agents may write there") {
		t.Errorf("the namespace of the nodes' Leases: %v", err)
	}
}

// A cluster has one installation: a release in a second namespace is refused, and one over the first is not.
func TestASecondInstallationIsRefused(t *testing.T) {
	c := load(t)
	if _, err := render(t, c, "net", nil, daemonSet("kube-system", "wayleave")); err == nil ||
		!strings.Contains(err.Error(), "kube-system has the DaemonSet wayleave") {
		t.Errorf("a second installation: %v", err)
	}
	if _, err := render(t, c, "net", nil, daemonSet("net", "wayleave"),
		daemonSet("kube-system", "kube-proxy")); err != nil {
		t.Errorf("an upgrade: %v", err)
	}
}
