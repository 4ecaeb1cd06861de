package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const missionYAML = `apiVersion: v1
kind: Service
metadata: {name: backend}
spec:
  clusterIP: 10.96.100.50
  selector: {app: backend}
  ports: [{port: 80, targetPort: 8080}, {port: 0}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: backend-1, labels: {kubernetes.io/service-name: backend}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.244.1.5]}, {addresses: [10.244.2.9]}, {addresses: [10.244.3.7]}]
`

func TestRenderTheMissionsService(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(file, []byte(missionYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (out, errs string, err error) {
		var a, b bytes.Buffer
		c := root()
		c.SetOut(&a)
		c.SetErr(&b)
		c.SetArgs(args)
		err = c.ExecuteContext(t.Context())
		return a.String(), b.String(), err
	}
	out, errs, err := run("render", "-f", file)
	if err != nil || !strings.Contains(out, "10.96.100.50 . tcp . 80 . 2 : 10.244.3.7 . 8080") {
		t.Errorf("%v: %s", err, out)
	}
	if !strings.Contains(errs, "Service default/backend: spec.ports[1].port: 0 is not a port") {
		t.Errorf("the bad port is not named: %s", errs)
	}
	for _, tt := range []struct{ args, want string }{
		{"render -f " + file + " --mode xdp", `--mode: "xdp" is not built`},
		{"render -f " + file + " --node node9", `no Node "node9"`},
		{"render -f " + file + ".no", "no such file"},
		{"render", "filename"},
	} {
		if _, _, err := run(strings.Fields(tt.args)...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %s", tt.args, err, tt.want)
		}
	}
}
