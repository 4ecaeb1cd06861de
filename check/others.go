package check

import (
	"fmt"
	"slices"
	"strings"

	"wayleave.dev/config"
	"wayleave.dev/source/kubernetes/fleet"
)

// other is a kind of programs that do the same as a feature of Wayleave.
type other struct {
	what string
	// images are parts of the names of their images, processes are the names of their processes.
	images, processes []string
	on                func(config.Config) bool
	level             Level
	found             string
	fix               func(fleet.Workload) string
}

func remove(w fleet.Workload) string { return fmt.Sprintf("kubectl -n %s delete %s", w.Namespace, w) }

func toZero(w fleet.Workload) string {
	return fmt.Sprintf("kubectl -n %s scale %s --replicas=0", w.Namespace, w)
}

func others() []other {
	or := func(fix func(fleet.Workload) string, setting string) func(fleet.Workload) string {
		return func(w fleet.Workload) string { return fix(w) + "; or the setting " + setting }
	}
	return []other{
		{"kube-proxy", []string{"/kube-proxy"}, []string{"kube-proxy"},
			func(c config.Config) bool { return c.Service.Enabled }, Failed,
			"Wayleave programs no Service while kube-proxy runs", or(remove, "service.enabled: false")},
		{"cluster DNS", []string{"/coredns", "/k8s-dns-node-cache"}, []string{"coredns", "node-cache"},
			func(c config.Config) bool { return c.DNS.Enabled }, Warning,
			"Wayleave takes the Service kube-dns over", or(toZero, "dns.enabled: false")},
		{"pod network", []string{"/flannel:", "calico/node", "cilium/cilium", "/kindnetd", "weave-kube",
			"antrea/antrea", "amazon-k8s-cni", "kube-router"},
			[]string{"flanneld", "calico-node", "cilium-agent", "kindnetd", "weaver", "antrea-agent", "kube-router"},
			func(c config.Config) bool { return c.PodNetwork.Enabled }, Failed,
			"pods have one network; theirs is not taken over", or(remove, "podnetwork.enabled: false")},
		{"load balancer", []string{"metallb/speaker", "metallb/controller", "/klipper-lb", "kube-vip"},
			[]string{"speaker"}, func(c config.Config) bool { return c.LoadBalancer.Enabled }, Warning,
			"both may give a Service an address", or(remove, "loadbalancer.enabled: false")},
		{"Ingress controller", []string{"ingress-nginx/controller", "/traefik", "haproxy-ingress", "contour"},
			[]string{"nginx-ingress-c", "traefik"}, func(c config.Config) bool { return c.Ingress.Enabled }, Warning,
			"each serves the Ingresses of its own class", func(fleet.Workload) string {
				return "wayleave ingress check; or the setting ingress.enabled: false"
			}},
	}
}

func (o other) hasImage(image string) bool {
	return slices.ContainsFunc(o.images, func(n string) bool { return strings.Contains("/"+image, n) })
}

// isForeign says whether a process has the name of a program of another network component.
func isForeign(process string) bool {
	return slices.ContainsFunc(others(), func(o other) bool { return slices.Contains(o.processes, process) })
}
