package check

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/overview"
	"wayleave.dev/source/kubernetes/fleet"
	"wayleave.dev/writeback"
)

// leaderWithin is how old the Lease of the writer may be: it is given on after 17 seconds.
const leaderWithin = 30 * time.Second

// Installed judges the objects of an installation.
func Installed(c *fleet.Cluster, o overview.Overview) Section {
	l := &lines{}
	l.workloads(c, o.Namespace)
	if c.Errors["leases"] == "" {
		l.want(c.Leader != "" && c.Renewed < leaderWithin, "writer", "the writer has a leader, "+c.Leader, Failed,
			"the writer has no leader", "kubectl -n "+o.Namespace+" logs deploy/wayleave-writer")
	}
	if c.Errors["kinds"] == "" {
		l.want(c.HasPools, "kinds", "the kind AddressPool exists", Failed, "the kind AddressPool does not exist: the "+
			"writer has not made it", "kubectl -n "+o.Namespace+" logs deploy/wayleave-writer")
	}
	l.dnsService(c)
	versions := map[string][]string{}
	for _, n := range o.Nodes {
		if n.Report != nil {
			versions[n.Report.Version] = append(versions[n.Report.Version], n.Name)
		}
	}
	all := slices.Sorted(maps.Keys(versions))
	l.want(len(all) <= 1, "versions", "all nodes run the version "+strings.Join(all, ", "), Warning,
		"nodes run several versions: "+strings.Join(all, ", "),
		"kubectl -n "+o.Namespace+" rollout status ds/wayleave")
	for _, line := range o.Settings {
		switch {
		case strings.Contains(line, "refuse this"):
			l.want(false, "settings", "", Failed, line, "kubectl -n "+o.Namespace+" edit configmap wayleave-settings")
		case strings.HasPrefix(line, "not used:"), strings.Contains(line, "has no effect"),
			strings.Contains(line, "cannot be read"):
			l.want(false, "settings", "", Warning, line, "kubectl -n "+o.Namespace+" edit configmap wayleave-settings")
		default:
			l.want(true, "settings", line, Warning, "", "")
		}
	}
	return Section{"installation", l.list}
}

func (l *lines) workloads(c *fleet.Cluster, namespace string) {
	if c.Errors["workloads"] != "" {
		return
	}
	for _, name := range []string{"daemonset/wayleave", "deployment/wayleave-writer"} {
		i := slices.IndexFunc(c.Workloads, func(w fleet.Workload) bool {
			return w.Namespace == namespace && w.String() == name
		})
		l.where = name
		if i < 0 {
			l.want(false, "workload", "", Failed, "it does not exist in "+namespace,
				"kubectl apply -f deploy/wayleave.yaml; or say where it is: -n NAMESPACE")
			continue
		}
		w := c.Workloads[i]
		l.want(w.Ready >= w.Desired && w.Updated >= w.Desired && w.Desired > 0, "workload",
			fmt.Sprintf("%d of %d pods are ready", w.Ready, w.Desired), Failed,
			fmt.Sprintf("%d of %d pods are ready, %d are of the newest version", w.Ready, w.Desired, w.Updated),
			fmt.Sprintf("kubectl -n %s rollout status %s; kubectl -n %s describe %s", namespace, name, namespace, name))
	}
	l.where = ""
}

// dnsService compares the Service kube-dns with what the kubelets give to pods.
func (l *lines) dnsService(c *fleet.Cluster) {
	told, ok := writeback.AgreedDNS(c.Leases)
	if !ok || len(told.VIPs) == 0 || c.Errors["services"] != "" {
		return
	}
	for _, want := range told.VIPs {
		found := slices.ContainsFunc(c.DNS, func(s string) bool {
			a, err := apiaddr.ParseAddr(s)
			return err == nil && a == want
		})
		l.want(found, "dns-address", "the Service kube-dns has the address of the kubelets, "+want.String(), Failed,
			fmt.Sprintf("kubelets give pods the DNS server %s, and the Service kube-dns has %s", want,
				strings.Join(c.DNS, ", ")), "kubectl -n kube-system delete service kube-dns; the writer makes it anew")
	}
}

// Features judges what each node says of itself.
func Features(o overview.Overview) Section {
	all := Section{Title: "features"}
	for _, n := range o.Nodes {
		l := &lines{where: "node/" + n.Name}
		switch {
		case n.Missing:
			l.want(false, "agent", "", Failed, "no agent runs here", "kubectl -n "+o.Namespace+
				" describe daemonset/wayleave; kubectl describe "+"node/"+n.Name)
		case n.Report == nil:
			l.want(false, "agent", "", Failed, "the agent does not answer: "+n.Error, "kubectl -n "+
				o.Namespace+" logs "+
				n.Pod.Name+" -c agent")
		default:
			l.features(n)
		}
		all.Lines = append(all.Lines, l.list...)
	}
	return all
}

func (l *lines) features(n overview.Node) {
	fix := "wayleave status --node " + n.Name
	for _, name := range slices.Sorted(maps.Keys(n.Report.Features)) {
		s := n.Report.Features[name]
		found := name + " has not synced yet"
		if s.Error != "" {
			found = name + ": " + s.Error
		}
		l.want(s.Synced && s.Error == "", "feature-"+name, name+" is in sync", Failed, found, fix)
	}
	for _, w := range n.Report.Wrong {
		known := slices.ContainsFunc(l.list, func(x Line) bool {
			return x.Level != Good && strings.HasPrefix(w, x.Text)
		})
		if !known {
			l.want(false, "wrong", "", Warning, w, fix+"; kubectl events -A --types=Warning")
		}
	}
}

// Probe is what a node found when it tried.
type Probe struct {
	// DNS has an error, or "" for an answer, by server.
	DNS map[netip.Addr]string `json:"dns"`
	// Name is the name that was asked for.
	Name string `json:"name"`
}

// Probes judges what nodes found. An answer is JSON of a Probe, or an error, by node.
func Probes(answers map[string]func() ([]byte, error)) Section {
	s := Section{Title: "traffic"}
	for _, node := range slices.Sorted(maps.Keys(answers)) {
		l := &lines{where: "node/" + node}
		var p Probe
		raw, err := answers[node]()
		if err == nil {
			err = json.Unmarshal(raw, &p)
		}
		if err != nil {
			l.want(false, "dns", "", Unknown, "DNS could not be tried: "+err.Error(), "wayleave status --node "+node)
		}
		for server, problem := range p.DNS {
			l.want(problem == "", "dns", fmt.Sprintf("DNS answers for %s", p.Name), Failed,
				fmt.Sprintf("the DNS server %s does not answer for %s: %s", server, p.Name, problem),
				"wayleave status --node "+node+
					"; kubectl -n kube-system logs -l app.kubernetes.io/name=wayleave -c dns")
		}
		s.Lines = append(s.Lines, l.list...)
	}
	return s
}
