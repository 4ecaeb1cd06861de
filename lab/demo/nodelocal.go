package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// nodeLocalYAML stands for NodeLocal DNSCache, whose program makes an interface of a kind that not all kernels have.
// It is the same server with the same sockets: CoreDNS at the address of kube-dns on each node, which asks another
// Service of CoreDNS.
const nodeLocalYAML = `
apiVersion: v1
kind: Service
metadata: {name: kube-dns-upstream, namespace: kube-system}
spec:
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: node-local-dns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
      bind 169.254.20.10 10.96.0.10
      cache 1
      forward . UPSTREAM { force_tcp }
    }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node-local-dns, namespace: kube-system}
spec:
  selector: {matchLabels: {app: node-local-dns}}
  template:
    metadata: {labels: {app: node-local-dns}}
    spec:
      hostNetwork: true
      dnsPolicy: Default
      terminationGracePeriodSeconds: 5
      containers:
      - name: addresses
        image: %[1]s
        imagePullPolicy: IfNotPresent
        command: [bash, -c]
        args:
        - |
          trap 'ip addr del 169.254.20.10/32 dev lo; ip addr del 10.96.0.10/32 dev lo; exit' TERM
          ip addr add 169.254.20.10/32 dev lo; ip addr add 10.96.0.10/32 dev lo
          while :; do sleep 0.2; done
        securityContext: {capabilities: {add: [NET_ADMIN]}}
      - name: node-cache
        image: %[2]s
        imagePullPolicy: IfNotPresent
        args: [-conf, /etc/coredns/Corefile]
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
      volumes: [{name: config, configMap: {name: node-local-dns}}]
`

// startNodeLocal puts the stand-in in front of CoreDNS.
func startNodeLocal(ctx context.Context, t *Tour) error {
	coredns, err := t.one(ctx, "{.spec.template.spec.containers[0].image}", "-n", "kube-system",
		"deployment", "coredns")
	if err != nil {
		return err
	}
	yaml := fmt.Sprintf(nodeLocalYAML, t.image(), coredns)
	if err := t.apply(ctx, strings.SplitN(yaml, "\n---\n", 2)[0]); err != nil {
		return err
	}
	upstream, err := t.one(ctx, "{.spec.clusterIP}", "-n", "kube-system", "service", "kube-dns-upstream")
	if err != nil {
		return err
	}
	if err := t.apply(ctx, strings.ReplaceAll(yaml, "UPSTREAM", upstream)); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "-n", "kube-system", "rollout", "status", "daemonset/node-local-dns",
		"--timeout=60s"); err != nil {
		return err
	}
	return eventually(ctx, func() error { return t.dnsSockets(ctx, "coredns") })
}

// dnsSockets requires that on each node that program has the address of the cluster DNS.
func (t *Tour) dnsSockets(ctx context.Context, program string) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		out, err := t.at(ctx, n, "ss", "-Hlnup", "src", "10.96.0.10:53")
		if err := errors.Join(err, want(out, `"`+program+`"`)); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// takeNodeLocal follows the guide: the cluster DNS, then NodeLocal DNSCache, then CoreDNS. A query of the second in
// which the address changes hands may need its second try.
func takeNodeLocal(ctx context.Context, t *Tour) error {
	if err := startNodeLocal(ctx, t); err != nil {
		return err
	}
	return t.measure(ctx, 30*time.Second, func() error {
		if err := t.follow(ctx, "coredns.md", "Switch over", "scale deployment/coredns"); err != nil {
			return err
		}
		if err := t.follow(ctx, "README.md", "NodeLocal DNSCache", "create -f"); err != nil {
			return err
		}
		return eventually(ctx, func() error { return t.dnsSockets(ctx, "wayleave") })
	}, true, dnsProbe)
}

// giveNodeLocalBack gives the cluster DNS back, and then its address on the nodes.
func giveNodeLocalBack(ctx context.Context, t *Tour) error {
	return t.measure(ctx, 30*time.Second, func() error {
		if err := t.follow(ctx, "coredns.md", "Back"); err != nil {
			return err
		}
		if err := startNodeLocal(ctx, t); err != nil {
			return err
		}
		_, err := t.kubectl(ctx, "-n", "kube-system", "delete", "daemonset/node-local-dns", "service/kube-dns-upstream")
		return err
	}, true, dnsProbe)
}
