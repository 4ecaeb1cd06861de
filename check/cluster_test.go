package check

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/ingress"
	"wayleave.dev/overview"
	"wayleave.dev/reconcile"
	"wayleave.dev/source/kubernetes/fleet"
)

const image = "wayleave.dev/wayleave:dev"

// goodCluster is one on which every check is good.
func goodCluster() *fleet.Cluster {
	c := &fleet.Cluster{Server: "https://192.0.2.1:6443", Version: "v1.33.0+k3s1", Errors: map[string]string{},
		Leader: "w-1", Renewed: 2 * time.Second, HasPools: true, DNS: []string{"10.96.0.10"},
		DefaultClasses: map[string]string{"wayleave": ingress.Controller},
		Workloads: []fleet.Workload{
			{Kind: "DaemonSet", Namespace: "kube-system", Name: "wayleave", Images: []string{image},
				Desired: 2, Ready: 2,
				Updated: 2},
			{Kind: "Deployment", Namespace: "kube-system", Name: "wayleave-writer", Images: []string{image}, Desired: 2,
				Ready: 2, Updated: 2},
			{Kind: "Deployment", Namespace: "kube-system", Name: "coredns",
				Images: []string{"registry/coredns/coredns:v1"}},
			{Kind: "Deployment", Namespace: "shop", Name: "web", Images: []string{"registry/shop/web"}, Desired: 3}},
		Leases: []*coordinationv1.Lease{{ObjectMeta: metav1.ObjectMeta{Name: "wayleave-node-n1",
			Annotations: map[string]string{"wayleave.dev/kubelet": `{"clusterDNS":["10.96.0.10"]}`}}}}}
	for _, n := range []string{"n1", "n2"} {
		c.Nodes = append(c.Nodes, fleet.Node{Name: n, Ready: true, OS: "linux", Kernel: "6.1.0",
			PodCIDRs: []string{"x"},
			Images:   []string{image}, Heartbeat: 3 * time.Second})
	}
	return c
}

func goodOverview() overview.Overview {
	o := overview.Overview{Namespace: "kube-system", Settings: []string{"the ConfigMap wayleave-settings is used"}}
	for _, n := range []string{"n1", "n2"} {
		o.Nodes = append(o.Nodes, overview.Node{Name: n,
			Answer: overview.Answer{Report: &agent.Report{Version: "v1", Node: n,
				Features: map[string]reconcile.State{"dns": {Synced: true}, "service": {Synced: true}}}}})
	}
	return o
}

func answer(problem string) func() ([]byte, error) {
	return func() ([]byte, error) {
		return json.Marshal(Probe{DNS: map[netip.Addr]string{netip.MustParseAddr("10.96.0.10"): problem}, Name: "k"})
	}
}

// whole is the report of all sections.
func whole(c *fleet.Cluster, o overview.Overview, answers map[string]func() ([]byte, error)) Report {
	return New(Kubernetes(c, time.Now()), Nodes(c, config.Default(), image), Others(c, config.Default()),
		Installed(c, o), Features(o), Probes(answers))
}

func TestAGoodClusterIsGood(t *testing.T) {
	r := whole(goodCluster(), goodOverview(), map[string]func() ([]byte, error){"n1": answer(""), "n2": answer("")})
	if r.Result != Good || r.Status() != nil {
		t.Error(r.Text())
	}
	text := r.Text()
	for _, want := range []string{"✓ 2 nodes: the node has a podCIDR\n", "✓ 2 nodes: dns is in sync\n",
		"✓ daemonset/wayleave: 2 of 2 pods are ready\n", "the kubelets, 10.96.0.10", "no other kube-proxy runs"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if len(text) > 3000 || strings.Contains(text, "✗") {
		t.Errorf("%s", text)
	}
}

// Each fault of a cluster is found by its own check alone, with a command that mends it.
func TestEachFaultOfAClusterIsFound(t *testing.T) {
	type state struct {
		c       *fleet.Cluster
		o       *overview.Overview
		answers map[string]func() ([]byte, error)
	}
	runs := func(image string) func(state) {
		return func(s state) {
			s.c.Workloads = append(s.c.Workloads, fleet.Workload{Kind: "DaemonSet", Namespace: "x", Name: "y",
				Images: []string{"sidecar", image}, Desired: 1})
		}
	}
	for _, tc := range []struct {
		id    string
		level Level
		spoil func(state)
		where string
		fix   string
	}{
		{"kubernetes", Failed, func(s state) { s.c.Version = "v1.32.9" }, "", "upgrade"},
		{"rights", Failed, func(s state) { s.c.Denied = []string{"create daemonsets.apps"} }, "", "cluster-admin"},
		{"rights", Unknown, func(s state) { s.c.Errors["rights"] = "forbidden" }, "", "can-i"},
		{"read-nodes", Unknown, func(s state) { s.c.Errors["nodes"] = "forbidden" }, "", "more rights"},
		{"clock-here", Warning, func(s state) { s.c.Skew = -time.Minute }, "", "timedatectl"},
		{"nodes", Failed, func(s state) { s.c.Nodes = nil }, "", "join"},
		{"podcidr", Failed, func(s state) { s.c.Nodes[1].PodCIDRs = nil }, "node/n2", "--pod-network-cidr"},
		{"node-kernel", Failed, func(s state) { s.c.Nodes[0].Kernel = "4.18.0" }, "node/n1", "later kernel"},
		{"os", Warning, func(s state) { s.c.Nodes[0].OS = "windows" }, "node/n1", "cordon"},
		{"image", Warning, func(s state) { s.c.Nodes[1].Images = nil }, "node/n2", "ctr -n k8s.io images import"},
		{"node-clock", Warning, func(s state) { s.c.Nodes[0].Heartbeat = -time.Minute }, "node/n1", "timedatectl"},
		{"node-clock", Warning, func(s state) { s.c.Nodes[0].Heartbeat = time.Hour }, "node/n1", "timedatectl"},
		{"other", Failed, runs("registry.k8s.io/kube-proxy:v1.36.3"), "x/daemonset/y",
			"kubectl -n x delete daemonset/y"},
		{"other", Warning, runs("registry.k8s.io/coredns/coredns:v1.12"), "x/daemonset/y", "dns.enabled: false"},
		{"other", Failed, runs("docker.io/flannel/flannel:v0.26"), "x/daemonset/y", "podnetwork.enabled: false"},
		{"other", Failed, runs("quay.io/cilium/cilium:v1.17"), "x/daemonset/y", "podnetwork.enabled: false"},
		{"other", Failed, runs("docker.io/calico/node:v3.30"), "x/daemonset/y", "podnetwork.enabled: false"},
		{"other", Warning, runs("quay.io/metallb/speaker:v0.15"), "x/daemonset/y", "loadbalancer.enabled: false"},
		{"other", Warning, runs("registry.k8s.io/ingress-nginx/controller:v1.12"), "x/daemonset/y",
			"wayleave ingress check"},
		{"default-class", Warning, func(s state) { s.c.DefaultClasses["nginx"] = "k8s.io/ingress-nginx" },
			"ingressclass/nginx", "is-default-class-"},
		{"workload", Failed, func(s state) { s.c.Workloads[0].Ready = 1 }, "daemonset/wayleave", "rollout status"},
		{"workload", Failed, func(s state) { s.c.Workloads[0].Updated = 1 }, "daemonset/wayleave", "rollout status"},
		{"workload", Failed, func(s state) { s.c.Workloads = s.c.Workloads[:1] }, "deployment/wayleave-writer",
			"kubectl apply"},
		{"writer", Failed, func(s state) { s.c.Leader = "" }, "", "logs deploy/wayleave-writer"},
		{"writer", Failed, func(s state) { s.c.Renewed = time.Minute }, "", "logs deploy/wayleave-writer"},
		{"kinds", Failed, func(s state) { s.c.HasPools = false }, "", "logs deploy/wayleave-writer"},
		{"dns-address", Failed, func(s state) { s.c.DNS = []string{"10.96.0.11"} }, "", "delete service kube-dns"},
		{"versions", Warning, func(s state) { s.o.Nodes[1].Report.Version = "v2" }, "", "rollout status"},
		{"settings", Failed, func(s state) { s.o.Settings = []string{"the next agents that start refuse this: x"} }, "",
			"edit"},
		{"settings", Warning, func(s state) { s.o.Settings = []string{"not used: x"} }, "", "edit configmap"},
		{"agent", Failed, func(s state) { s.o.Nodes[1] = overview.Node{Name: "n2", Missing: true} },
			"node/n2", "describe"},
		{"agent", Failed, func(s state) { s.o.Nodes[1].Report, s.o.Nodes[1].Error = nil, "timeout" },
			"node/n2", "logs"},
		{"feature-dns", Failed, func(s state) {
			s.o.Nodes[0].Report.Features["dns"] = reconcile.State{
				Error: "no socket"}
		},
			"node/n1", "wayleave status --node n1"},
		{"feature-dns", Failed, func(s state) { s.o.Nodes[0].Report.Features["dns"] = reconcile.State{} }, "node/n1",
			"wayleave status --node n1"},
		{"wrong", Warning, func(s state) { s.o.Nodes[0].Report.Wrong = []string{"Service a/b: x"} },
			"node/n1", "events"},
		{"dns", Failed, func(s state) { s.answers["n2"] = answer("timeout") }, "node/n2", "wayleave status --node n2"},
		{"dns", Unknown, func(s state) {
			s.answers["n2"] = func() ([]byte, error) { return nil, errors.New("unknown command") }
		}, "node/n2", "wayleave status"},
	} {
		o := goodOverview()
		s := state{goodCluster(), &o, map[string]func() ([]byte, error){"n1": answer(""), "n2": answer("")}}
		tc.spoil(s)
		r := whole(s.c, o, s.answers)
		if r.Result != tc.level {
			t.Errorf("%s: result %s; want %s\n%s", tc.id, r.Result, tc.level, r.Text())
		}
		for _, section := range r.Sections {
			for _, l := range section.Lines {
				if l.Level == Good {
					continue
				}
				if l.ID != tc.id || l.Where != tc.where || !strings.Contains(l.Fix, tc.fix) {
					t.Errorf("%s: found %+v; want the place %q and the fix %q", tc.id, l, tc.where, tc.fix)
				}
			}
		}
		if !strings.Contains(r.Text(), tc.fix) {
			t.Errorf("%s: the text does not say %q\n%s", tc.id, tc.fix, r.Text())
		}
	}
}

func TestTheExitStatusOfAReport(t *testing.T) {
	for _, tc := range []struct {
		levels []Level
		want   string
	}{
		{[]Level{Good, Warning}, ""}, {[]Level{Unknown, Warning}, "exit status 2"},
		{[]Level{Failed, Unknown}, "exit status 1"},
	} {
		var s Section
		for _, l := range tc.levels {
			s.Lines = append(s.Lines, Line{Level: l})
		}
		got := ""
		if err := New(s).Status(); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%v: %q; want %q", tc.levels, got, tc.want)
		}
	}
}

// DNS is tried as programs try it, and an answer that does not come costs a bounded time.
func TestDNSIsTried(t *testing.T) {
	p := Try(t.Context(), []netip.Addr{netip.MustParseAddr("127.0.0.1")}, "")
	if p.Name != "kubernetes.default.svc.cluster.local" || p.DNS[netip.MustParseAddr("127.0.0.1")] == "" {
		t.Errorf("%+v", p)
	}
}

// What nodes say of themselves is folded as other lines; one that says nothing costs its own line.
func TestNodesSayWhatOnlyTheySee(t *testing.T) {
	say := func(text string, err error) func() ([]byte, error) {
		return func() ([]byte, error) { return []byte(text), err }
	}
	const good = `{"result":"ok","sections":[{"title":"node","lines":[{"id":"kernel","level":"ok","text":"the ` +
		`kernel is good"}]}]}`
	r := New(FromNodes(map[string]func() ([]byte, error){"n1": say(good, nil), "n2": say(good, nil),
		"n3": say(strings.ReplaceAll(good, `"ok"`, `"failed"`), nil), "n4": say("", errors.New("the pod did not end")),
		"n5": say("wayleave: no such command", nil), "n6": say("{}", nil),
		"n7": say(strings.ReplaceAll(good, `"ok"`, `"x"`), nil)}))
	text := r.Text()
	for _, want := range []string{"✓ 2 nodes: the kernel is good", "✗ node/n3: the kernel is good",
		"? node/n4: the node could not " +
			"be checked: the pod did not end", "no such command", "? node/n6", "? node/n7"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if r.Result != Failed {
		t.Errorf("%s", r.Result)
	}
}
