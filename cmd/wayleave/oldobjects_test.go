package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// oldObjects have addresses as API servers before strict validation stored them.
const oldObjects = `{apiVersion: v1, kind: Service, metadata: {namespace: old, name: web},
  spec: {type: LoadBalancer, clusterIP: 10.096.008.030,
  externalIPs: ["198.051.100.8", "::ffff:198.51.100.9"],
  loadBalancerSourceRanges: ["010.1.2.3/8"], ports: [{name: http, port: 80}]},
  status: {loadBalancer: {ingress: [{ip: 203.0.113.008}]}}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: old, name: web-1,
  labels: {kubernetes.io/service-name: web}}, addressType: IPv4,
  ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.244.008.030]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: old, name: web-2,
  labels: {kubernetes.io/service-name: web, service.kubernetes.io/headless: ""}}, addressType: IPv4,
  ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.244.8.31]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: old, name: web-3,
  labels: {kubernetes.io/service-name: web}}, addressType: FQDN,
  ports: [{name: http, port: 8080}], endpoints: [{addresses: [web.example.com]}]}
`

// Old objects become what they are for kube-proxy, in each mode, and raise no warning.
func TestOldObjectsInEveryMode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "old.yaml")
	if err := os.WriteFile(file, []byte(oldObjects), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"nftables", "iptables", "ipvs"} {
		c := root()
		var out, errs bytes.Buffer
		c.SetArgs([]string{"render", "--mode", mode, "-f", file})
		c.SetOut(&out)
		c.SetErr(&errs)
		if err := c.Execute(); err != nil || errs.Len() > 0 {
			t.Errorf("%s: %v, said %s", mode, err, &errs)
		}
		for _, want := range []string{"10.96.8.30", "198.51.100.8", "198.51.100.9", "203.0.113.8", "10.244.8.30",
			"10.0.0.0/8"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %s is not there:\n%s", mode, want, &out)
			}
		}
		for _, not := range []string{"10.244.8.31", "example"} {
			if strings.Contains(out.String(), not) {
				t.Errorf("%s: %s is there:\n%s", mode, not, &out)
			}
		}
	}
}
