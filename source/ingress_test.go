package source

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"wayleave.dev/model"
)

func readIngress(t *testing.T, spec string) (*model.Ingress, []model.Problem) {
	t.Helper()
	in := &networkingv1.Ingress{}
	if err := yaml.UnmarshalStrict([]byte("metadata: {namespace: shop, name: main}\nspec:\n  "+
		strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ")), in); err != nil {
		t.Fatal(err)
	}
	return Ingress(in)
}

func TestWrongPartsOfAnIngressAreNamed(t *testing.T) {
	const path = "rules: [{host: a.example, http: {paths: [{path: %s, pathType: %s, backend: {service: {name: web, " +
		"port: {number: 80}}}}]}}]"
	const backend = "rules: [{http: {paths: [{path: /, pathType: Prefix, backend: %s}]}}]"
	for _, tc := range []struct {
		name, spec, want string
		paths            int // that are left
	}{
		{"good", fmt.Sprintf(path, "/", "Prefix"), "", 1},
		{"no path type", "rules: [{http: {paths: [{path: /, backend: {service: {name: web, port: {number: 80}}}}]}}]",
			`spec.rules[0].http.paths[0].pathType: "" is not a type`, 0},
		{"path type", fmt.Sprintf(path, "/", "Regex"), `pathType: "Regex" is not a type`, 0},
		{"path without slash", fmt.Sprintf(path, "x", "Prefix"), `path: "x" does not begin with a slash`, 0},
		{"two slashes", fmt.Sprintf(path, "/a//b", "Prefix"), `contains "//"`, 0},
		{"dots", fmt.Sprintf(path, "/a/../b", "Exact"), `contains "/../"`, 0},
		{"escaped slash", fmt.Sprintf(path, "/a%2fb", "Exact"), `contains "%2f"`, 0},
		{"no path", "rules: [{http: {paths: [{pathType: ImplementationSpecific, backend: {service: {name: web, " +
			"port: {name: http}}}}]}}]", "", 1},
		{"host", strings.Replace(fmt.Sprintf(path, "/", "Prefix"), "a.example", "a_b", 1),
			`spec.rules[0].host: "a_b" is neither a DNS name`, 0},
		{"host is an address", strings.Replace(fmt.Sprintf(path, "/", "Prefix"), "a.example", "192.0.2.1", 1),
			"an address is not allowed", 0},
		{"wildcard inside", strings.Replace(fmt.Sprintf(path, "/", "Prefix"), "a.example", "a.*.example", 1),
			"is neither a DNS name", 0},
		{"wildcard", strings.Replace(fmt.Sprintf(path, "/", "Prefix"), "a.example", `"*.Example.org"`, 1), "", 1},
		{"resource", fmt.Sprintf(backend, "{resource: {kind: Bucket, name: b}}"),
			"backend.resource: Bucket b is not a Service", 1},
		{"no backend", fmt.Sprintf(backend, "{}"), "backend: is empty", 1},
		{"no port", fmt.Sprintf(backend, "{service: {name: web}}"), "backend.service.port.number: 0 is not a port", 1},
		{"two ports", fmt.Sprintf(backend, "{service: {name: web, port: {name: http, number: 80}}}"),
			"has a name and a number", 1},
		{"service name", fmt.Sprintf(backend, "{service: {name: We/b, port: {number: 80}}}"),
			`"We/b" is not the name of a Service`, 1},
		{"tls host", "tls: [{hosts: [a_b, c.example], secretName: s}]", `spec.tls[0].hosts[0]: "a_b"`, 0},
		{"tls secret", "tls: [{hosts: [c.example], secretName: ../s}]",
			`spec.tls[0].secretName: "../s" is not the name`, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, problems := readIngress(t, tc.spec)
			var text []string
			for _, p := range problems {
				text = append(text, p.Error())
			}
			if all := strings.Join(text, "\n"); tc.want == "" && all != "" || !strings.Contains(all, tc.want) {
				t.Errorf("problems are %q, want %q", all, tc.want)
			}
			n := 0
			for _, r := range out.Rules {
				n += len(r.Paths)
			}
			if n != tc.paths {
				t.Errorf("%d paths are left, want %d", n, tc.paths)
			}
		})
	}
}

func TestClassAndStatusOfAnIngress(t *testing.T) {
	in := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "x", UID: "u", ResourceVersion: "7",
		Annotations: map[string]string{"kubernetes.io/ingress.class": "nginx", "nginx.ingress.kubernetes.io/a": "b"}}}
	in.Status.LoadBalancer.Ingress = []networkingv1.IngressLoadBalancerIngress{{IP: "192.0.2.1"},
		{Hostname: "lb.example"}}
	out, problems := Ingress(in)
	if len(problems) > 0 || out.ClassAnnotation != "nginx" || len(out.Annotations) != 1 || len(out.Given) != 1 ||
		len(out.GivenNames) != 1 || out.Version != "7" || out.UID != "u" {
		t.Errorf("read %+v, %v", out, problems)
	}
	class := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "c",
		Annotations: map[string]string{"ingressclass.kubernetes.io/is-default-class": "yes"}}}
	if c, problems := IngressClass(class); c.Default || len(problems) != 1 {
		t.Errorf("read %+v, %v", c, problems)
	}
}

// selfSigned makes a certificate in PEM.
func selfSigned(t *testing.T, cn string, names ...string) (chain, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, DNSNames: names,
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func TestASecretIsReducedToWhatItIsNamedFor(t *testing.T) {
	chain, key := selfSigned(t, "", "A.example", "*.b.example")
	_, other := selfSigned(t, "", "a.example")
	cnChain, cnKey := selfSigned(t, "old.example")
	for _, tc := range []struct {
		name  string
		in    corev1.Secret
		wrong string
		names string
		users int
		byKey int
	}{
		{"certificate", corev1.Secret{Data: map[string][]byte{"tls.crt": append([]byte("some words\n"), chain...),
			"tls.key": key, "password": []byte("hush")}}, "", "a.example *.b.example", 0, 0},
		{"only a common name", corev1.Secret{Data: map[string][]byte{"tls.crt": cnChain, "tls.key": cnKey}}, "",
			"old.example", 0, 0},
		{"another's key", corev1.Secret{Data: map[string][]byte{"tls.crt": chain, "tls.key": other}},
			"private key does not match", "", 0, 0},
		{"no key", corev1.Secret{Data: map[string][]byte{"tls.crt": chain}}, "data[tls.key] is missing", "", 0, 0},
		{"no certificate", corev1.Secret{Type: corev1.SecretTypeTLS}, "data[tls.crt] is missing", "", 0, 0},
		{"no PEM", corev1.Secret{Data: map[string][]byte{"tls.crt": []byte("x"), "tls.key": []byte("y")}},
			"no block CERTIFICATE in PEM", "", 0, 0},
		{"too long", corev1.Secret{Data: map[string][]byte{"tls.crt": make([]byte, maxSecret+1), "tls.key": key}},
			"longer than", "", 0, 0},
		{"users", corev1.Secret{Data: map[string][]byte{
			"auth": []byte("# who\nann:$apr1$x$y\r\n\nbob:{SHA}z\nnobody\n")}}, "", "", 2, 0},
		{"a key for each user", corev1.Secret{Data: map[string][]byte{"ann": []byte("$2y$05$abc\n"),
			"token": []byte("hush")}}, "", "", 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, problems := Secret(&tc.in)
			if len(problems) > 0 || tc.wrong == "" && got.Wrong != "" || !strings.Contains(got.Wrong, tc.wrong) {
				t.Errorf("it is wrong that %q (%v), want %q", got.Wrong, problems, tc.wrong)
			}
			if n := strings.Join(got.Names, " "); n != tc.names || len(got.Users) != tc.users ||
				len(got.UserMap) != tc.byKey {
				t.Errorf("names %q, users %v and %v", n, got.Users, got.UserMap)
			}
			if (got.Chain != nil) != (tc.names != "") || strings.Contains(string(got.Chain), "words") {
				t.Errorf("the chain is %q", got.Chain)
			}
			for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
				if text := fmt.Sprintf(f, got) + fmt.Sprintf(f, *got); strings.Contains(text, "PRIVATE") ||
					strings.Contains(text, "45 45") || strings.Contains(text, "apr1") {
					t.Errorf("%s prints %s", f, text)
				}
			}
		})
	}
}

func TestCovers(t *testing.T) {
	for _, tc := range []struct {
		name, host string
		want       bool
	}{
		{"a.example", "a.example", true}, {"*.example", "a.example", true}, {"*.example", "a.b.example", false},
		{"*.example", "example", false},
		{"*.example", ".example", false}, {"*.example", "*.example", true}, {"a.example", "b.example", false},
		{"*.b.example", "*.b.example", true}, {"*.example", "*.b.example", false},
	} {
		if got := model.Covers([]string{tc.name}, tc.host); got != tc.want {
			t.Errorf("%s covers %s: %v", tc.name, tc.host, got)
		}
	}
}
