package check

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/source/kubernetes/fleet"
)

// maxSkew is how far clocks may differ: certificates and Leases are compared with them.
const maxSkew = 10 * time.Second

// deadKubelet is how long a ready node's Lease may be old: the controller calls the node not ready after 40 s.
const deadKubelet = 60 * time.Second

// Kubernetes judges the API server, and what the caller may do there.
func Kubernetes(c *fleet.Cluster, now time.Time) Section {
	l := &lines{}
	l.want(isKubernetes(c.Version), "kubernetes", "the API server "+c.Server+" runs "+c.Version, Failed,
		fmt.Sprintf("the API server runs %s; v1.%d or later is needed", c.Version, minKubernetes), "upgrade Kubernetes")
	if problem := c.Errors["rights"]; problem != "" {
		l.want(false, "rights", "", Unknown, "your rights cannot be read: "+problem, "kubectl auth can-i --list")
	} else {
		l.want(len(c.Denied) == 0, "rights", "you may create what the installation creates", Failed,
			"you may not "+strings.Join(c.Denied, ", "),
			"use an account that is cluster-admin: --kubeconfig, --context")
	}
	if problem := c.Errors["clock"]; problem != "" {
		l.want(false, "clock-here", "", Unknown, problem, "date; compare it with the API server's")
	} else {
		l.want(c.Skew.Abs() < maxSkew, "clock-here", "the clock of this machine agrees with the API server's", Warning,
			fmt.Sprintf("the clock of this machine differs from the API server's by %s", c.Skew.Round(time.Second)),
			"timedatectl set-ntp true")
	}
	for _, part := range slices.Sorted(maps.Keys(c.Errors)) {
		if part != "rights" && part != "clock" {
			l.want(false, "read-"+part, "", Unknown, part+" cannot be read: "+c.Errors[part],
				"use an account with more rights: --kubeconfig, --context")
		}
	}
	return Section{"kubernetes", l.list}
}

// isKubernetes reads a version such as v1.33.2+k3s1.
func isKubernetes(version string) bool {
	var major, minor int
	n, _ := fmt.Sscanf(version, "v%d.%d", &major, &minor)
	return n == 2 && (major > 1 || major == 1 && minor >= minKubernetes)
}

// Nodes judges the Node objects. image is the one to be installed, empty if none is.
func Nodes(c *fleet.Cluster, cfg config.Config, image string) Section {
	all := Section{Title: "nodes"}
	if len(c.Nodes) == 0 && c.Errors["nodes"] == "" {
		all.Lines = append(all.Lines, Line{ID: "nodes", Level: Failed, Text: "the cluster has no nodes",
			Fix: "kubeadm join, or the like"})
	}
	for _, n := range c.Nodes {
		l := &lines{where: "node/" + n.Name}
		l.want(n.OS == "linux" || n.OS == "", "os", "the operating system is Linux", Warning,
			"the operating system is "+n.OS+": Wayleave does not run there", "kubectl cordon "+n.Name)
		l.want(isKernel(n.Kernel), "node-kernel", fmt.Sprintf("the kernel is %d.%d or later", minKernelMajor,
			minKernelMinor), Failed, fmt.Sprintf("the kernel is %q; %d.%d or later is needed", n.Kernel, minKernelMajor,
			minKernelMinor), "boot a later kernel on "+n.Name)
		l.want(len(n.PodCIDRs) > 0 || !cfg.PodNetwork.Enabled, "podcidr", "the node has a podCIDR", Failed,
			"the node has no podCIDR", "kubeadm init --pod-network-cidr=10.244.0.0/16; on a cluster that runs, set "+
				"--allocate-node-cidrs --cluster-cidr=10.244.0.0/16 of kube-controller-manager")
		l.want(image == "" || hasImage(n, image), "image", "the image "+image+" is on the node", Warning,
			"the image "+image+" is not among the node's: the kubelet pulls it, or the pod waits",
			"on the node: ctr -n k8s.io images import wayleave.tar")
		l.clock(n)
		all.Lines = append(all.Lines, l.list...)
	}
	return all
}

// hasImage looks at the images that the kubelet reports, of which there may be more.
func hasImage(n fleet.Node, image string) bool {
	return slices.ContainsFunc(n.Images, func(name string) bool {
		return name == image || strings.HasSuffix(name, "/"+image)
	})
}

// clock compares the Lease of a node, which has the node's time, with the API server's.
func (l *lines) clock(n fleet.Node) {
	if n.Heartbeat == 0 || !n.Ready {
		return
	}
	l.want(n.Heartbeat > -maxSkew && n.Heartbeat < deadKubelet, "node-clock", "the clock agrees with the API server's",
		Warning, fmt.Sprintf("the kubelet's Lease is from %s ago by the node's clock: the clocks differ",
			n.Heartbeat.Round(time.Second)), "on the node: timedatectl set-ntp true")
}

// Others finds programs that do the same as features that are on.
func Others(c *fleet.Cluster, cfg config.Config) Section {
	l := &lines{}
	if c.Errors["workloads"] != "" {
		return Section{"other programs", nil} // Kubernetes says so
	}
	for _, o := range others() {
		if !o.on(cfg) {
			continue
		}
		free := true
		for _, w := range c.Workloads {
			if w.Desired > 0 && slices.ContainsFunc(w.Images, o.hasImage) {
				free = false
				l.where = w.Namespace + "/" + w.String()
				l.want(false, "other", "", o.level, "another "+o.what+" runs: "+o.found, o.fix(w))
			}
		}
		l.where = ""
		if free {
			l.want(true, "other", "no other "+o.what+" runs", o.level, "", "")
		}
	}
	if cfg.Ingress.Enabled {
		l.classes(c)
	}
	return Section{"other programs", l.list}
}

func (l *lines) classes(c *fleet.Cluster) {
	for _, name := range slices.Sorted(maps.Keys(c.DefaultClasses)) {
		if by := c.DefaultClasses[name]; by != ingress.Controller {
			l.where = "ingressclass/" + name
			l.want(false, "default-class", "", Warning, "the default IngressClass is one of "+by+
				": Ingresses without a class are not for Wayleave", "kubectl annotate ingressclass "+name+
				" ingressclass.kubernetes.io/is-default-class-")
			l.where = ""
		}
	}
}

// OnNodes says how the nodes themselves are checked, which the API server does not know.
func OnNodes() Section {
	return Section{"on the nodes", []Line{{ID: "nodes-by-hand", Level: Warning,
		Text: "kernel modules, ports, firewalls and the kubelet's files are seen on nodes only",
		Fix:  "on each node, as root: wayleave check --pre --node; or --probe-image IMAGE"}}}
}

// FromNodes has the lines of reports that nodes made of themselves, in JSON, by node.
func FromNodes(answers map[string]func() ([]byte, error)) Section {
	s := Section{Title: "on the nodes"}
	for _, node := range slices.Sorted(maps.Keys(answers)) {
		where := "node/" + node
		var r Report
		raw, err := answers[node]()
		if err == nil {
			if err = json.Unmarshal(raw, &r); err != nil {
				err = fmt.Errorf("%w: %.200q", err, raw)
			}
		}
		if err == nil && len(r.Sections) == 0 {
			err = errors.New("its report is empty")
		}
		if err != nil {
			s.Lines = append(s.Lines, Line{ID: "on-node", Where: where, Level: Unknown,
				Text: "the node could not be checked: " + err.Error(),
				Fix:  "on the node, as root: wayleave check --pre --node"})
		}
		for _, section := range r.Sections {
			for _, l := range section.Lines {
				if rank(l.Level) < 0 {
					l.Level = Unknown
				}
				l.Where = where
				s.Lines = append(s.Lines, l)
			}
		}
	}
	return s
}
