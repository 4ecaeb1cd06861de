package kubernetes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

const twoClusters = `apiVersion: v1
kind: Config
clusters:
- {name: one, cluster: {server: "https://one.example:6443"}}
- {name: two, cluster: {server: "https://two.example:6443"}}
users: [{name: u, user: {token: x}}]
contexts:
- {name: one, context: {cluster: one, user: u}}
- {name: two, context: {cluster: two, user: u, namespace: team}}
current-context: one
`

// A cluster is chosen as kubectl chooses it.
func TestAClusterIsChosenAsKubectlDoes(t *testing.T) {
	home := t.TempDir()
	file := filepath.Join(home, "file")
	inHome := filepath.Join(home, ".kube", "config")
	if err := os.MkdirAll(filepath.Dir(inHome), 0o700); err != nil {
		t.Fatal(err)
	}
	other := strings.ReplaceAll(twoClusters, ".example", ".home.example")
	for name, text := range map[string]string{file: twoClusters, inHome: other} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := clientcmd.RecommendedHomeFile // found out once, from HOME
	clientcmd.RecommendedHomeFile = inHome
	t.Cleanup(func() { clientcmd.RecommendedHomeFile = before })
	for _, tc := range []struct {
		env               string
		at                Access
		server, namespace string
		fails             string
	}{
		{"", Access{}, "https://one.home.example:6443", "default", ""},
		{file, Access{}, "https://one.example:6443", "default", ""},
		{"", Access{Kubeconfig: file, Context: "two"}, "https://two.example:6443", "team", ""},
		{file, Access{Context: "two"}, "https://two.example:6443", "team", ""},
		{file, Access{Kubeconfig: inHome}, "https://one.home.example:6443", "default", ""},
		{"", Access{Kubeconfig: filepath.Join(home, "none")}, "", "default", "none"},
		{"", Access{Context: "three"}, "", "default", "three"},
	} {
		t.Setenv("KUBECONFIG", tc.env)
		c, _, err := tc.at.RESTConfig()
		if tc.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("%+v: %v; want an error that names %s", tc, err, tc.fails)
			}
			continue
		}
		if err != nil || c.Host != tc.server || c.UserAgent != "wayleave" || c.QPS == 0 {
			t.Errorf("%+v: %v, %v", tc, c, err)
		}
		if ns := tc.at.DefaultNamespace(); ns != tc.namespace {
			t.Errorf("%+v: namespace %s", tc, ns)
		}
	}
	if err := os.Remove(inHome); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", "")
	if _, _, err := (Access{}).RESTConfig(); err == nil || !strings.Contains(err.Error(), "give --kubeconfig") {
		t.Errorf("without any file: %v", err)
	}
}
