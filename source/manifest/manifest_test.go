package manifest

import (
	"strings"
	"testing"

	"wayleave.dev/model"
)

func read(t *testing.T, in string) (model.Snapshot, []model.Problem, error) {
	t.Helper()
	s, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	problems, err := Read(s, "x.yaml", strings.NewReader(in))
	return s.Snapshot(), problems, err
}

// The mission's Service, as it is written there.
const missionService = `# the mission's
apiVersion: v1
kind: Service
metadata:
  name: backend
spec:
  type: ClusterIP  # ← Default, can be omitted
  selector:
    app: backend
  ports:
  - port: 80         # Service port
    targetPort: 8080 # Container port
`

func TestTheMissionsServiceIsRead(t *testing.T) {
	snap, problems, err := read(t, "---\n# nothing\n---\n"+missionService+"---\n")
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	s, ok := snap.Service(model.Name{Namespace: "default", Name: "backend"})
	if !ok || len(s.Ports) != 1 || s.Ports[0].Port != 80 {
		t.Errorf("read %+v", s)
	}
}

func TestALikeKubectlGetIsRead(t *testing.T) {
	list := "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimPrefix(missionService,
		"# the mission's\n"), "\n", "\n  ")
	snap, _, err := read(t, list)
	if err != nil {
		t.Fatal(err)
	}
	if snap.Count(model.ServiceKind) != 1 {
		t.Error("the item of the list is missing")
	}
}

func TestBadManifests(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"unknown field", strings.Replace(missionService, "ports:", "prots:", 1),
			`x.yaml: document 1: error unmarshaling JSON: while decoding JSON: json: unknown field "prots"`},
		{"unknown kind", "apiVersion: apps/v1\nkind: Deployment\n",
			`x.yaml: document 1: kind: "Deployment" of apiVersion "apps/v1" is not used`},
		{"no kind", "metadata: {name: x}\n", "x.yaml: document 1: apiVersion and kind are missing"},
		{"no name", "apiVersion: v1\nkind: Service\n", "x.yaml: document 1: metadata.name: is missing"},
		{"no YAML", missionService + "---\n\tx", "x.yaml: document 2: not YAML"},
		{"wrong type", strings.Replace(missionService, "port: 80 ", "port: eighty ", 1),
			"document 1: error unmarshaling"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, _, err := read(t, tc.in); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %s", err, tc.want)
			}
		})
	}
}

func TestABadObjectHarmsNoOther(t *testing.T) {
	snap, problems, err := read(t, missionService+"---\n"+strings.NewReplacer("name: backend", "name: bad", "port: 80 ",
		"port: 99999 ").Replace(missionService))
	if err != nil {
		t.Fatal(err)
	}
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "Service default/bad: spec.ports[0].port: 99999") {
		t.Errorf("problems are %v", problems)
	}
	if snap.Count(model.ServiceKind) != 2 {
		t.Errorf("%d services", snap.Count(model.ServiceKind))
	}
}

func FuzzRead(f *testing.F) {
	f.Add(missionService)
	f.Add("apiVersion: v1\nkind: List\nitems: [1, {}]")
	f.Add("kind: [")
	f.Fuzz(func(t *testing.T, in string) {
		_, _, _ = read(t, in) // any error will do; a panic will not
	})
}

func TestAnAddressPoolIsRead(t *testing.T) {
	snap, problems, err := read(t, "apiVersion: wayleave.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: "+
		"lan}\nspec: {addresses: [192.0.2.0/24], autoAssign: false, l2: {interfaces: [eth*]}}\n")
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	p, ok := snap.AddressPool("lan")
	if !ok || len(p.Ranges) != 1 || p.AutoAssign || !p.L2.Enabled || len(p.L2.Interfaces) != 1 {
		t.Errorf("read %+v", p)
	}
	if _, _, err = read(t, "apiVersion: wayleave.dev/v1alpha1\nkind: AddressPool\nmetadata: {name: lan}\nspec: "+
		"{adresses: [192.0.2.0/24]}\n"); err == nil {
		t.Error("an unknown field was taken")
	}
}

const missionPolicy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: backend, namespace: prod}
spec: {podSelector: {matchLabels: {app: backend}}, ingress: [{ports: [{port: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: backend, namespace: prod, labels: {app: backend}}
---
apiVersion: v1
kind: Pod
metadata: {name: frontend}
---
apiVersion: v1
kind: Pod
metadata: {name: known}
status: {podIPs: [{ip: 192.0.2.1}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {team: a}}
`

// Pods that have not started get addresses, and namespaces are there with the label that
// the API server gives them.
func TestPoliciesAndTheirPodsAreRead(t *testing.T) {
	snap, problems, err := read(t, missionPolicy)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	if p, ok := snap.NetworkPolicy(model.Name{Namespace: "prod", Name: "backend"}); !ok || len(p.Ingress) != 1 {
		t.Errorf("read %+v", p)
	}
	seen := map[string]bool{}
	for p := range snap.Pods() {
		for _, a := range p.IPs {
			if seen[a.String()] {
				t.Errorf("%s is there twice", a)
			}
			seen[a.String()] = true
		}
	}
	if len(seen) != 5 || !seen["192.0.2.1"] {
		t.Errorf("addresses are %v, want two of each pod that had none", seen)
	}
	for name, labels := range map[string]int{"prod": 1, "default": 2} {
		if ns, ok := snap.Namespace(name); !ok || len(ns.Labels) != labels ||
			ns.Labels["kubernetes.io/metadata.name"] != name {
			t.Errorf("namespace %s is %+v", name, ns)
		}
	}
}
