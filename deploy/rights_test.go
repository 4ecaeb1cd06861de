package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"wayleave.dev/config"
)

var accounts = []Account{{"kube-system", "wayleave"}, {"kube-system", "wayleave-writer"}}

// The namespaces in which an account's rights differ.
var rightsNamespaces = []string{"default", "kube-system", "wayleave-peers"}

func rights(t *testing.T, manifest []byte, a Account, namespace string) []string {
	t.Helper()
	out, err := Rights(manifest, a, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// lab/demo/rights has what a real API server said (`kubectl auth can-i --list`, demo:rights);
// the manifest says the same.
func TestRightsAreThoseOfTheGoldenFiles(t *testing.T) {
	m, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range accounts {
		for _, ns := range rightsNamespaces {
			raw, err := os.ReadFile(filepath.Join("../lab/demo/rights", a.Name+"."+ns+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			want, err := ParseRights(string(raw))
			if err != nil {
				t.Fatal(err)
			}
			if got := rights(t, m, a, ns); !slices.Equal(got, want) {
				t.Errorf("%s in %s has\n%s\nthe golden file has\n%s", a.Name, ns, strings.Join(got, "\n"),
					strings.Join(want, "\n"))
			}
		}
	}
}

// An agent reads, and writes Leases of the one namespace; a policy limits those to its node.
func TestAgentsWriteLeasesOnly(t *testing.T) {
	m, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	read := []string{"get", "list", "watch"}
	for _, ns := range rightsNamespaces {
		for _, line := range rights(t, m, accounts[0], ns) {
			what, verbs, _ := strings.Cut(line, "] ")
			for _, v := range strings.Fields(verbs) {
				if !slices.Contains(read, v) && (ns != "wayleave-peers" || what != "leases.coordination.k8s.io [") {
					t.Errorf("agents may %s %s] in %s", v, what, ns)
				}
			}
		}
		for _, line := range rights(t, m, accounts[1], ns) {
			if strings.HasPrefix(line, "secrets ") || strings.HasPrefix(line, "configmaps ") {
				t.Errorf("the writer may read Secrets or ConfigMaps: %s", line)
			}
		}
	}
	for _, name := range []string{"wayleave-agent", "wayleave-writer"} {
		var policy, binding map[string]any
		for _, d := range manifestDocs(t) {
			var o struct {
				Kind     string
				Metadata struct{ Name string }
				Spec     map[string]any
			}
			if err := yaml.Unmarshal(d, &o); err != nil {
				t.Fatal(err)
			}
			switch {
			case o.Metadata.Name != name:
			case o.Kind == "ValidatingAdmissionPolicy":
				policy = o.Spec
			case o.Kind == "ValidatingAdmissionPolicyBinding":
				binding = o.Spec
			}
		}
		if policy["failurePolicy"] != "Fail" || fmt.Sprint(binding["validationActions"]) != "[Deny]" ||
			binding["policyName"] != name {
			t.Errorf("the policy %s does not fail closed: %v, %v", name, policy["failurePolicy"], binding)
		}
	}
}

// kubectl apply leaves what a new manifest lacks: objects of the version before must not go
// on giving agents its rights.
func TestAnUpgradeTakesTheAgentsRightsAway(t *testing.T) {
	before, err := os.ReadFile("testdata/rbac-before-the-writer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	after, err := Manifest()
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string][]byte{}
	var order []string
	for _, m := range [][]byte{before, after} {
		for _, d := range bytes.Split(m, []byte("\n---\n")) {
			var o struct {
				Kind     string
				RoleRef  any `json:"roleRef"`
				Metadata struct{ Name, Namespace string }
			}
			if err := yaml.Unmarshal(d, &o); err != nil {
				t.Fatal(err)
			}
			key := o.Kind + " " + o.Metadata.Namespace + "/" + o.Metadata.Name
			if old, had := objects[key]; had && o.RoleRef != nil {
				var was struct {
					RoleRef any `json:"roleRef"`
				}
				if err := yaml.Unmarshal(old, &was); err != nil {
					t.Fatal(err)
				}
				if fmt.Sprint(was.RoleRef) != fmt.Sprint(o.RoleRef) {
					t.Errorf("%s: roleRef changes, which the API refuses", key)
				}
			} else if !had {
				order = append(order, key)
			}
			objects[key] = d
		}
	}
	var all [][]byte
	for _, key := range order {
		all = append(all, objects[key])
	}
	upgraded := bytes.Join(all, []byte("\n---\n"))
	for _, a := range accounts {
		for _, ns := range rightsNamespaces {
			if got, want := rights(t, upgraded, a, ns), rights(t, after, a, ns); !slices.Equal(got, want) {
				t.Errorf("after an upgrade %s in %s has\n%s\nand not\n%s", a.Name, ns, strings.Join(got, "\n"),
					strings.Join(want, "\n"))
			}
		}
	}
}

func hasSecrets(t *testing.T, manifest []byte, account string) bool {
	t.Helper()
	return slices.ContainsFunc(rights(t, manifest, Account{"kube-system", account}, "default"),
		func(l string) bool { return strings.HasPrefix(l, "secrets ") })
}

func daemonSets(t *testing.T, manifest []byte) map[string]*appsv1.DaemonSet {
	t.Helper()
	out := map[string]*appsv1.DaemonSet{}
	for _, d := range bytes.Split(manifest, []byte("\n---\n")) {
		if bytes.Contains(d, []byte("\nkind: DaemonSet\n")) {
			ds := new(appsv1.DaemonSet)
			if err := yaml.UnmarshalStrict(d, ds); err != nil {
				t.Fatal(err)
			}
			out[ds.Name] = ds
		}
	}
	return out
}

// With a node selector the chart renders two DaemonSets that share the nodes among them,
// and only the account of the nodes that serve Ingress reads Secrets.
func TestOnlyNodesThatServeIngressReadSecrets(t *testing.T) {
	selector := map[string]any{"node-restriction.kubernetes.io/ingress": "true", "zone": "a"}
	for name, values := range map[string]map[string]any{
		"by the value": {"ingress": map[string]any{"nodeSelector": selector}},
		"by the settings": {
			"settings": "ingress: {nodeSelector: {node-restriction.kubernetes.io/ingress: \"true\", zone: a}}\n"},
	} {
		m := renderChart(t, values)
		if hasSecrets(t, m, "wayleave") || !hasSecrets(t, m, "wayleave-ingress") ||
			hasSecrets(t, m, "wayleave-writer") {
			t.Errorf("%s: Secrets are readable by others than the nodes that serve Ingress", name)
		}
		for _, ns := range rightsNamespaces {
			agents, ingress := rights(t, m, Account{"kube-system", "wayleave"}, ns),
				rights(t, m, Account{"kube-system", "wayleave-ingress"}, ns)
			ingress = slices.DeleteFunc(ingress, func(l string) bool {
				return l == "secrets [] list watch" || l == "configmaps [] list watch"
			})
			if !slices.Equal(agents, ingress) {
				t.Errorf("%s: in %s the accounts differ by more than Secrets and ConfigMaps: %v, %v", name, ns, agents,
					ingress)
			}
		}
		sets := daemonSets(t, m)
		inside, outside := sets["wayleave-ingress"], sets["wayleave"]
		if len(sets) != 2 || inside == nil || outside == nil {
			t.Fatalf("%s: %d DaemonSets", name, len(sets))
		}
		if inside.Spec.Template.Spec.ServiceAccountName != "wayleave-ingress" ||
			outside.Spec.Template.Spec.ServiceAccountName != "wayleave" {
			t.Errorf("%s: the DaemonSets have other accounts", name)
		}
		for _, labels := range []map[string]string{{}, {"zone": "a"},
			{"zone": "b", "node-restriction.kubernetes.io/ingress": "true"},
			{"zone": "a", "node-restriction.kubernetes.io/ingress": "true"}} {
			in, out := selects(inside.Spec.Template.Spec, labels), selects(outside.Spec.Template.Spec, labels)
			if in == out {
				t.Errorf("%s: a node with labels %v gets both DaemonSets or none (%t)", name, labels, in)
			}
		}
		cm := new(corev1.ConfigMap)
		for _, d := range bytes.Split(m, []byte("\n---\n")) {
			if bytes.Contains(d, []byte("\nkind: ConfigMap\n")) {
				if err := yaml.UnmarshalStrict(d, cm); err != nil {
					t.Fatal(err)
				}
			}
		}
		c, err := config.ParseData(cm.Data)
		if err != nil || len(c.Ingress.NodeSelector) != 2 {
			t.Errorf("%s: the agents' settings have the selector %v, %v", name, c.Ingress.NodeSelector, err)
		}
	}
}

// selects says whether a pod may run on a node: its node selector, and its affinity of terms
// of which one must hold.
func selects(spec corev1.PodSpec, labels map[string]string) bool {
	for k, v := range spec.NodeSelector {
		if labels[k] != v {
			return false
		}
	}
	if spec.Affinity == nil {
		return true
	}
	return slices.ContainsFunc(
		spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms,
		func(t corev1.NodeSelectorTerm) bool {
			return !slices.ContainsFunc(t.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool {
				return e.Operator != corev1.NodeSelectorOpNotIn || slices.Contains(e.Values, labels[e.Key])
			})
		})
}

func TestWithoutIngressNobodyReadsSecrets(t *testing.T) {
	for name, values := range map[string]map[string]any{
		"by the value":    {"ingress": map[string]any{"enabled": false}},
		"by the settings": {"settings": "ingress: {enabled: false}\n"},
		"with a selector": {"ingress": map[string]any{"enabled": false, "nodeSelector": map[string]any{"a": "b"}}},
	} {
		if m := renderChart(t, values); regexp.MustCompile(`resources:.*(secrets|configmaps)`).Match(m) ||
			len(daemonSets(t, m)) != 1 {
			t.Errorf("%s: the chart renders a right to Secrets or ConfigMaps", name)
		}
	}
}

// The passwords of BGP sessions are readable by agents in one namespace, and only while BGP is enabled.
func TestOnlyWithBGPAgentsReadPasswords(t *testing.T) {
	for settings, want := range map[string]bool{"": false, "bgp: {enabled: false}": false,
		"bgp: {enabled: true}": true} {
		m := renderChart(t, map[string]any{"settings": settings + "\ningress: {enabled: false}\n"})
		for _, a := range accounts {
			for _, ns := range rightsNamespaces {
				got := slices.Contains(rights(t, m, a, ns), "secrets [] list watch")
				if may := want && a.Name == "wayleave" && ns == "wayleave-peers"; got != may {
					t.Errorf("%q: %s may read Secrets in %s: %t", settings, a.Name, ns, got)
				}
			}
		}
	}
}

// The promises of the writer's Deployment that a later edit could break unseen.
func TestTheWriterKeepsItsContract(t *testing.T) {
	d := doc[appsv1.Deployment](t, "Deployment")
	spec := d.Spec.Template.Spec
	if *d.Spec.Replicas != 2 || !spec.HostNetwork || spec.DNSPolicy != corev1.DNSDefault ||
		spec.PriorityClassName != "system-cluster-critical" || spec.ServiceAccountName != "wayleave-writer" {
		t.Errorf("the Deployment broke its contract: %+v", d.Spec)
	}
	if d.Spec.Template.Labels["app.kubernetes.io/name"] == "wayleave" {
		t.Error("the writer's pods are endpoints of kube-dns")
	}
	for _, key := range []string{"node.kubernetes.io/not-ready", "node.kubernetes.io/network-unavailable",
		"node-role.kubernetes.io/control-plane"} {
		if !slices.ContainsFunc(spec.Tolerations, func(x corev1.Toleration) bool {
			return x.Key == key && x.Effect == "" && x.Operator == corev1.TolerationOpExists
		}) {
			t.Errorf("the taint %s is not tolerated", key)
		}
	}
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			t.Errorf("the writer mounts %s of its node", v.HostPath.Path)
		}
	}
	for _, c := range spec.Containers {
		s := c.SecurityContext
		if len(c.Ports) > 0 || len(s.Capabilities.Add) > 0 || len(s.Capabilities.Drop) != 1 || !*s.RunAsNonRoot ||
			!*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation ||
			s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s has more rights than named", c.Name)
		}
	}
}
