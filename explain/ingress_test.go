package explain

import (
	"strings"
	"testing"
	"time"

	"wayleave.dev/ingress"
	"wayleave.dev/model"
	"wayleave.dev/source/manifest"
)

const ingressTown = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: shop, name: good, annotations: {nginx.ingress.kubernetes.io/proxy-body-size: 8m}}
spec: {ingressClassName: nginx, rules: [{host: a.example, http: {paths: [{path: /, pathType: Prefix,
  backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: shop, name: half, annotations: {nginx.ingress.kubernetes.io/opentelemetry-operation-name: x,
  nginx.ingress.kubernetes.io/ssl-redirect: "false"}}
spec: {ingressClassName: nginx, tls: [{hosts: [b.example], secretName: none}],
  rules: [{host: b.example, http: {paths: [{path: /x, pathType: ImplementationSpecific,
  backend: {service: {name: none, port: {number: 80}}}}, {path: z, pathType: Prefix,
  backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: shop, name: theirs}
spec: {ingressClassName: other, defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1]}]
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web-0, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.244.1.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}
`

const policyOf = `
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: guard}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [FROM]}]}
`

func checkText(t *testing.T, yaml string, change func(*IngressCheck)) (string, bool) {
	t.Helper()
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if _, err := manifest.Read(store, "x", strings.NewReader(yaml)); err != nil {
		t.Fatal(err)
	}
	c := IngressCheck{Snapshot: store.Snapshot(), Settings: ingress.Settings{AdoptNginx: true}, Now: time.Now()}
	if change != nil {
		change(&c)
	}
	return c.Text()
}

func TestIngressCheckSaysWhatCarriesOver(t *testing.T) {
	text, carries := checkText(t, ingressTown, nil)
	for _, want := range []string{
		"Ingress shop/good (class nginx)\n  ok   nginx.ingress.kubernetes.io/proxy-body-size: 8m\n  ok   " +
			"spec.rules[0].http.paths[0]: a.example/ goes to Service web\n",
		"  NO   metadata.annotations[nginx.ingress.kubernetes.io/opentelemetry-operation-name]: is not built, and " +
			"has no effect: traces are not supported; ingress.accessLog writes a line for each request\n",
		"  ok   nginx.ingress.kubernetes.io/ssl-redirect: false\n",
		"  NO   spec.tls[0].secretName: Secret shop/none does not exist",
		"  NO   spec.rules[0].http.paths[0].backend.service: Service shop/none does not exist",
		"  NO   spec.rules[0].http.paths[1].path: \"z\" does not begin with a slash",
		"Ingress shop/theirs: class other is not for Wayleave\n",
		"1 of 2 Ingresses for Wayleave carry over completely; policies block 0 backends; 1 Ingresses are for others.\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if carries {
		t.Error("it says that all carries over")
	}
	text, _ = checkText(t, ingressTown, func(c *IngressCheck) { c.NoSecrets, c.NoServices = true, true })
	if strings.Contains(text, "does not exist") || !strings.Contains(text, "The files contain no Secrets") {
		t.Errorf("files without Secrets and Services:\n%s", text)
	}
}

// Files without ConfigMaps say that these were not checked, and the fields that may be set are those of the flag.
func TestIngressCheckOfConfigMaps(t *testing.T) {
	town := strings.Replace(ingressTown, "opentelemetry-operation-name: x,", "custom-headers: m,", 1)
	text, _ := checkText(t, town, nil)
	if !strings.Contains(text, "custom-headers]: ConfigMap shop/m does not exist") {
		t.Errorf("a missing ConfigMap:\n%s", text)
	}
	text, _ = checkText(t, town, func(c *IngressCheck) { c.NoConfigMaps = true })
	if strings.Contains(text, "ConfigMap shop/m") || !strings.Contains(text, "The files contain no ConfigMaps") {
		t.Errorf("files without ConfigMaps:\n%s", text)
	}
	town += "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: shop, name: m}\ndata: {X-A: b}\n"
	if text, _ = checkText(t, town, nil); !strings.Contains(text, `globalAllowedResponseHeaders does not list "X-A"`) {
		t.Errorf("a field that may not be set:\n%s", text)
	}
	text, _ = checkText(t, town, func(c *IngressCheck) { c.Settings.ResponseHeaders = []string{"X-A"} })
	if !strings.Contains(text, "ok   nginx.ingress.kubernetes.io/custom-headers: m") {
		t.Errorf("a field that may be set:\n%s", text)
	}
}

// Proxies are known by their labels, where nodes have pod networks; else another node's is
// that node's address, and the pod's own node may always.
func TestIngressCheckFindsPoliciesThatCut(t *testing.T) {
	one := ingressTown[:strings.Index(ingressTown,
		"---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {namespace: shop, name: half")] +
		ingressTown[strings.Index(ingressTown, "---\napiVersion: v1\nkind: Service"):]
	alone := one[:strings.LastIndex(one, "---\napiVersion: v1\nkind: Node")]
	none := one[:strings.Index(one, "---\napiVersion: v1\nkind: Node")]
	networked := strings.NewReplacer("metadata: {name: n1}\n",
		"metadata: {name: n1}\nspec: {podCIDRs: [10.244.1.0/24]}\n", "metadata: {name: n2}\n",
		"metadata: {name: n2}\nspec: {podCIDRs: [10.244.2.0/24]}\n").Replace(one) +
		"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system, labels: {kubernetes.io/metadata.name: " +
		"kube-system}}\n"
	for _, tc := range []struct {
		name, yaml, from, want string
	}{
		{"pods only", one, "{namespaceSelector: {}}", "Service shop/web:80\n  NO   NetworkPolicy shop/guard denies " +
			"the proxies (pods web-0, from 192.0.2.12): allow an ipBlock"},
		{"a proxy without its labels", networked, "{podSelector: {}}",
			"denies the proxies (pods web-0, from 10.244.1.254, 10.244.2.254): allow pods of " +
				"the namespace kube-system"},
		{"a proxy by its labels", networked, "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: " +
			"kube-system}}, podSelector: {matchLabels: {app.kubernetes.io/component: ingress}}}", ""},
		{"the nodes' addresses", one, "{ipBlock: {cidr: 192.0.2.0/24}}", ""},
		{"another block", one, "{ipBlock: {cidr: 198.51.100.0/24}}", "shop/guard"},
		{"one node", alone, "{namespaceSelector: {}}", ""},
		{"files without nodes", none, "{namespaceSelector: {}}", "from " + elsewhere},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text, carries := checkText(t, tc.yaml+strings.Replace(policyOf, "FROM", tc.from, 1), nil)
			if !strings.Contains(text, tc.want) || tc.want == "" && strings.Contains(text, "guard") ||
				carries != (tc.want == "") {
				t.Errorf("carries is %v:\n%s", carries, text)
			}
		})
	}
}

// What can take the place of a snippet is written, and the rest is named.
func TestIngressCheckTranslatesSnippets(t *testing.T) {
	text, carries := checkText(t, strings.Replace(ingressTown,
		"nginx.ingress.kubernetes.io/opentelemetry-operation-name: x,",
		`nginx.ingress.kubernetes.io/configuration-snippet: "more_set_headers 'X-A: b'; gzip on;", `+
			`nginx.ingress.kubernetes.io/server-snippet: "add_header X-B c; return 403;",`, 1), nil)
	for _, want := range []string{
		"  write ingress.wayleave.dev/response-headers: \"X-A: b\\nX-B: c\", in place of configuration-snippet and " +
			"server-snippet\n",
		"  left  nginx.ingress.kubernetes.io/server-snippet: return 403: there is no annotation for it\n",
		"  left  nginx.ingress.kubernetes.io/configuration-snippet: gzip on: there is no annotation for it\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if carries {
		t.Error("it says that all carries over")
	}
}

// A path of an Ingress that is closed is not said to be served.
func TestIngressCheckSaysWhatIsClosed(t *testing.T) {
	text, carries := checkText(t, strings.Replace(ingressTown, "nginx.ingress.kubernetes.io/proxy-body-size: 8m",
		`nginx.ingress.kubernetes.io/enable-modsecurity: "true"`, 1), nil)
	if carries || !strings.Contains(text,
		"  NO   spec.rules[0].http.paths[0]: a.example/ answers 503 instead of going to Service web\n") ||
		strings.Contains(text, "a.example/ goes to Service web") {
		t.Errorf("carries over: %v\n%s", carries, text)
	}
}
