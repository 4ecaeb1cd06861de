package deploy

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"wayleave.dev/config"
)

func manifestDocs(t *testing.T) [][]byte {
	t.Helper()
	m, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(m, []byte("\n---\n"))
}

func doc[T any](t *testing.T, kind string) *T {
	t.Helper()
	for _, d := range manifestDocs(t) {
		if bytes.Contains(d, []byte("\nkind: "+kind+"\n")) {
			out := new(T)
			if err := yaml.UnmarshalStrict(d, out); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			return out
		}
	}
	t.Fatalf("no %s in the manifest", kind)
	return nil
}

func TestCommittedFilesAreFresh(t *testing.T) {
	m, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	files, err := Chart()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"wayleave.yaml": m}
	for name, body := range files {
		want[filepath.Join("chart", name)] = body
	}
	for name, body := range want {
		have, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(have, body) {
			t.Errorf("%s is stale; run `make gen`", name)
		}
	}
}

// renderChart renders the chart as Helm does, whose engine is text/template, with values
// in place of the defaults.
func renderChart(t *testing.T, values map[string]any) []byte {
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
	funcs := template.FuncMap{
		"indent": func(n int, s string) string { return indent(s, n) },
		"dict":   func() map[string]any { return map[string]any{} },
		"quote":  func(s string) string { return strconv.Quote(s) },
		"fromYaml": func(s string) (out map[string]any, err error) {
			err = yaml.Unmarshal([]byte(s), &out)
			return out, err
		},
		"toJson": func(v any) (string, error) {
			raw, err := json.Marshal(v)
			return string(raw), err
		},
	}
	tmpl, err := template.New("chart").Funcs(funcs).Parse(string(files["templates/wayleave.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := tmpl.Execute(&got, map[string]any{"Values": v,
		"Chart": map[string]any{"AppVersion": "dev"}}); err != nil {
		t.Fatal(err)
	}
	return got.Bytes()
}

func TestTheChartRendersTheManifest(t *testing.T) {
	want, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := renderChart(t, nil); string(got) != string(want) {
		t.Errorf("the chart with its default values is not the manifest: line %d differs", firstDifference(string(got),
			string(want)))
	}
}

func firstDifference(a, b string) int {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return i + 1
		}
	}
	return min(len(x), len(y)) + 1
}

func TestTheConfigMapHoldsTheDefaults(t *testing.T) {
	cm := doc[corev1.ConfigMap](t, "ConfigMap")
	c, err := config.Parse([]byte(cm.Data["config.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != config.Default().Mode || c.PodNetwork != config.Default().PodNetwork {
		t.Errorf("the ConfigMap says %+v", c)
	}
}

// The operator's settings are in a ConfigMap that the manifest mounts, and does not have: `kubectl apply` of another
// version cannot reset them. Without it the pods start.
func TestTheOperatorsSettingsAreMountedAndNotInTheManifest(t *testing.T) {
	const name = "wayleave-settings"
	for _, d := range manifestDocs(t) {
		var o metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(d, &o); err == nil && o.Kind == "ConfigMap" && o.Name == name {
			t.Error("the manifest has the operator's ConfigMap, and would reset it")
		}
	}
	for kind, spec := range map[string]corev1.PodSpec{
		"DaemonSet":  doc[appsv1.DaemonSet](t, "DaemonSet").Spec.Template.Spec,
		"Deployment": doc[appsv1.Deployment](t, "Deployment").Spec.Template.Spec,
	} {
		found := false
		for _, v := range spec.Volumes {
			if v.Name != "config" || v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				found = found || s.ConfigMap != nil && s.ConfigMap.Name == name && s.ConfigMap.Optional != nil &&
					*s.ConfigMap.Optional && s.ConfigMap.Items[0].Path == "settings.yaml"
			}
		}
		if !found {
			t.Errorf("the %s does not mount the ConfigMap %s where it is there", kind, name)
		}
	}
}

// The promises of the install contract that a later edit could break unseen.
func TestTheDaemonSetKeepsTheContract(t *testing.T) {
	ds := doc[appsv1.DaemonSet](t, "DaemonSet")
	spec := ds.Spec.Template.Spec
	roll := ds.Spec.UpdateStrategy.RollingUpdate
	if !spec.HostNetwork || spec.DNSPolicy != corev1.DNSDefault || spec.PriorityClassName != "system-node-critical" ||
		roll.MaxSurge.IntValue() != 1 || roll.MaxUnavailable.IntValue() != 0 || len(spec.Tolerations) != 1 ||
		spec.Tolerations[0].Operator != corev1.TolerationOpExists {
		t.Errorf("the DaemonSet broke its contract: %+v", ds.Spec)
	}
	if drain := config.Default().Ingress.Drain; *spec.TerminationGracePeriodSeconds < int64(drain.Seconds())+5 {
		t.Errorf("the kubelet waits %d s, and proxies drain for %s", *spec.TerminationGracePeriodSeconds, drain)
	}
	for _, c := range spec.Containers {
		if len(c.Ports) > 0 {
			t.Errorf("%s declares ports, with which a surge pod could not start on its node", c.Name)
		}
	}
}

// Secrets are in one role, which says nothing else, so that it can be taken away or bound
// to namespaces; nothing may get, write or delete them.
func TestSecretsAreReadableByOneRoleOnly(t *testing.T) {
	found := 0
	for _, d := range manifestDocs(t) {
		if strings.Contains(string(d), `"*"`) {
			t.Errorf("the permissions have grown: %s", d)
		}
		var role rbacv1.ClusterRole
		if !bytes.Contains(d, []byte("Role\n")) || yaml.Unmarshal(d, &role) != nil ||
			!strings.HasSuffix(role.Kind, "Role") {
			continue
		}
		for _, r := range role.Rules {
			if !slices.Contains(r.Resources, "secrets") {
				continue
			}
			found++
			if role.Kind != "ClusterRole" || role.Name != "wayleave-secrets" || len(role.Rules) != 1 ||
				len(r.Resources) != 1 || !slices.Equal(r.Verbs, []string{"list", "watch"}) {
				t.Errorf("Secrets in another way: %s", d)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d rules are about Secrets", found)
	}
}
