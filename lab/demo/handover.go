package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// handovers are played on a lab with CoreDNS, kube-proxy and the bridge plugin, by hack/test-handover: Wayleave is
// installed beside them, takes over, and gives back, under the loss meter.
func handovers() chapter {
	return chapter{"Beside other programs, in their place, and back", []check{
		{name: "beside",
			say: "the unedited manifest beside others changes nothing: Events say " +
				"how to switch over", run: beside, within: 4 * time.Minute, apart: true},
		{name: "metallb", say: "MetalLB gives a Service an address beside Wayleave", run: installMetalLB,
			within: 8 * time.Minute, apart: true},
		{name: "handover-metallb", say: "Wayleave takes addresses over from MetalLB: nothing is lost outside of the " +
			"cluster, and before that no agent answers", run: takeAddresses, within: 4 * time.Minute, apart: true},
		{name: "handover-metallb-back", say: "and gives them back: nothing is lost", run: giveAddressesBack,
			within: 4 * time.Minute, apart: true},
		{name: "handover-dns", say: "Wayleave takes the cluster DNS over from CoreDNS: no query is lost", run: takeDNS,
			within: 3 * time.Minute, apart: true},
		{name: "handover-dns-back", say: "and gives it back: no query is lost", run: giveDNSBack,
			within: 4 * time.Minute, apart: true},
		{name: "handover-services", say: "Wayleave takes Services over from kube-proxy: nothing is lost",
			run: takeServices, within: 4 * time.Minute, apart: true},
		{name: "handover-services-back", say: "and gives them back: nothing is lost", run: giveServicesBack,
			within: 4 * time.Minute, apart: true},
	}}
}

const (
	dnsProbe     = "dns=10.96.0.10:53/kubernetes.default.svc.cluster.local."
	selectorPath = `{.spec.selector.app\.kubernetes\.io/name}`
)

// othersYAML stands for MetalLB and another Ingress controller: what Wayleave finds of them.
const othersYAML = `
apiVersion: v1
kind: Namespace
metadata: {name: metallb-system}
---
apiVersion: v1
kind: Pod
metadata: {name: speaker, namespace: metallb-system, labels: {app: metallb, component: speaker}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
  - {name: speaker, image: "%s", args: [pause], imagePullPolicy: IfNotPresent}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx}
spec: {controller: k8s.io/ingress-nginx}
`

// beside installs Wayleave from the manifest as it is.
func beside(ctx context.Context, t *Tour) error {
	manifest, err := os.ReadFile("deploy/wayleave.yaml")
	if err != nil {
		return err
	}
	before, err := t.kubectl(ctx, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec}")
	if err != nil {
		return err
	}
	if err := t.apply(ctx, fmt.Sprintf(clientYAML, t.image())); err != nil {
		return err
	}
	if err := t.apply(ctx, fmt.Sprintf(othersYAML, t.image())); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "rollout", "status", "deployment/meter", "--timeout=100s"); err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "rollout", "status", "deployment/echo", "--timeout=100s"); err != nil {
		return err
	}
	echo, err := t.echo(ctx)
	if err != nil {
		return err
	}
	err = t.meter(ctx, 20*time.Second, func() error {
		if err := t.apply(ctx, string(manifest)); err != nil {
			return err
		}
		return t.rollout(ctx)
	}, dnsProbe, "udp="+echo, "tcp="+echo, "connect="+echo)
	if err != nil {
		return err
	}
	after, err := t.kubectl(ctx, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec}")
	if err != nil || after != before {
		return fmt.Errorf("kube-dns was %s, is %s, %w", before, after, err)
	}
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		out, err := t.kubectl(ctx, "get", "events", "-A", "-o",
			`jsonpath={range .items[*]}{.reason} {.involvedObject.name}: {.message}{"\n"}{end}`)
		wanted := []string{"AnotherDNSServer kube-dns: ", "dns.takeOver", "AnotherLoadBalancer speaker: ",
			"loadbalancer.takeOver", "AnotherIngressController wayleave: "}
		for _, n := range nodes {
			wanted = append(wanted, "AnotherCNI "+n+": ", n+": a service proxy")
		}
		return errors.Join(err, want(out, wanted...))
	})
}

// echo is the address of the Service echo.
func (t *Tour) echo(ctx context.Context) (string, error) {
	ip, err := t.one(ctx, "{.spec.clusterIP}", "service", "echo")
	return ip + ":7", err
}

// rollout waits for both workloads of Wayleave.
func (t *Tour) rollout(ctx context.Context) error {
	for _, w := range []string{"daemonset/wayleave", "deployment/wayleave-writer"} {
		if _, err := t.kubectl(ctx, "-n", "kube-system", "rollout", "status", w, "--timeout=120s"); err != nil {
			return err
		}
	}
	return nil
}

// commands plays shell commands of the guides.
func (t *Tour) commands(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		line = strings.ReplaceAll(line, "kubectl", t.Kubectl)
		if _, err := t.command(ctx, nil, "bash", "-euc", line); err != nil {
			return err
		}
	}
	return nil
}

// guide returns the commands of a page of docs/migrate below a heading, in order.
func guide(page, heading string) (out []string, err error) {
	blocks, err := section("docs/migrate/"+page, heading)
	for _, b := range blocks {
		for line := range strings.Lines(b) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out, err
}

// follow runs those commands of a guide that are for the API server and are not left out.
func (t *Tour) follow(ctx context.Context, page, heading string, leave ...string) error {
	lines, err := guide(page, heading)
	if err != nil {
		return err
	}
	for _, line := range lines {
		out := !strings.HasPrefix(line, "kubectl ") || strings.Contains(line, " | ")
		for _, l := range leave {
			out = out || strings.Contains(line, l)
		}
		if out {
			continue
		}
		if err := t.commands(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

func takeDNS(ctx context.Context, t *Tour) error {
	return t.meter(ctx, 30*time.Second, func() error {
		if err := t.follow(ctx, "coredns.md", "Switch over"); err != nil {
			return err
		}
		return eventually(ctx, func() error {
			pods, err := t.kubectl(ctx, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "name")
			if err == nil && pods != "" {
				err = fmt.Errorf("CoreDNS still runs: %s", pods)
			}
			return err
		})
	}, dnsProbe)
}

func giveDNSBack(ctx context.Context, t *Tour) error {
	err := t.meter(ctx, 30*time.Second, func() error { return t.follow(ctx, "coredns.md", "Back") }, dnsProbe)
	if err != nil {
		return err
	}
	time.Sleep(35 * time.Second) // the writer looks every 30 seconds
	name, err := t.kubectl(ctx, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath="+selectorPath)
	if err != nil || name != "" {
		return fmt.Errorf("the Service is taken over again: %q, %w", name, err)
	}
	return t.meter(ctx, 5*time.Second, nil, dnsProbe)
}

// proxies stops or starts the kube-proxy of each node, a program of the node in the lab.
func (t *Tour) proxies(ctx context.Context, script string) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if _, err := t.at(ctx, n, "sh", "-c", script); err != nil {
			return err
		}
	}
	return nil
}

const (
	stopProxy = `mv /etc/kubernetes/kube-proxy.yaml /etc/kubernetes/kube-proxy.off
for p in /proc/[0-9]*; do
  if tr '\0' ' ' <$p/cmdline | grep -q '^/usr/bin/kube-proxy '; then kill ${p#/proc/}; fi
done`
	startProxy = `mv /etc/kubernetes/kube-proxy.off /etc/kubernetes/kube-proxy.yaml`
)

func takeServices(ctx context.Context, t *Tour) error {
	echo, err := t.echo(ctx)
	if err != nil {
		return err
	}
	return t.meter(ctx, 30*time.Second, func() error {
		if err := t.proxies(ctx, stopProxy); err != nil {
			return err
		}
		if err := t.proxies(ctx, "for i in $(seq 60); do nft list table ip wayleave-service 2>/dev/null | "+
			"grep -q 'dport' && exit 0; sleep 1; done; exit 1"); err != nil {
			return fmt.Errorf("the agents did not program Services: %w", err)
		}
		return t.proxies(ctx, "nft delete table ip kube-proxy; nft delete table ip6 kube-proxy || true")
	}, dnsProbe, "udp="+echo, "tcp="+echo, "connect="+echo)
}

func giveServicesBack(ctx context.Context, t *Tour) error {
	echo, err := t.echo(ctx)
	if err != nil {
		return err
	}
	return t.meter(ctx, 30*time.Second, func() error {
		if err := t.follow(ctx, "kube-proxy.md", "Back", "daemonset/kube-proxy", "daemonset kube-proxy"); err != nil {
			return err
		}
		if err := t.proxies(ctx, startProxy); err != nil {
			return err
		}
		if err := t.proxies(ctx, "for i in $(seq 60); do nft list table ip kube-proxy 2>/dev/null | "+
			"grep -q '10.96.0.10' && exit 0; sleep 1; done; exit 1"); err != nil {
			return fmt.Errorf("kube-proxy did not program Services: %w", err)
		}
		return t.proxies(ctx, "nft delete table ip wayleave-service; nft delete table ip6 wayleave-service || true")
	}, dnsProbe, "udp="+echo, "tcp="+echo, "connect="+echo)
}
