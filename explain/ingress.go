package explain

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"wayleave.dev/ingress"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// IngressCheck compares the Ingresses of a cluster with what Wayleave would serve.
type IngressCheck struct {
	Snapshot model.Snapshot
	Settings ingress.Settings
	// NoSecrets, NoConfigMaps and NoServices say that the files contain none; missing ones are not reported then.
	NoSecrets, NoConfigMaps, NoServices bool
	// Namespace limits the report to Ingresses of one namespace; empty is all. Conflicts with others are still named.
	Namespace string
	Now       time.Time
}

// Text reports line by line what of the Ingresses carries over, and which policies would block the proxies. carries
// is true if everything carries over.
func (c IngressCheck) Text() (text string, carries bool) {
	var b strings.Builder
	checked, differs := ingress.Check(c.Snapshot, c.Settings, c.Now), c.differs()
	checked = slices.DeleteFunc(checked, func(i ingress.Checked) bool {
		return c.Namespace != "" && i.Ingress.Name.Namespace != c.Namespace
	})
	ours, good := 0, 0
	backends := map[string]bool{}
	for _, i := range checked {
		class := cmp.Or(i.Ingress.ClassAnnotation, i.Ingress.Class, "none")
		if !i.Ours {
			fmt.Fprintf(&b, "Ingress %s: class %s is not for Wayleave\n", i.Ingress.Name, class)
			continue
		}
		ours++
		fmt.Fprintf(&b, "Ingress %s (class %s)\n", i.Ingress.Name, class)
		if c.one(&b, i, differs[i.Ingress.Name]) {
			good++
		}
		for _, k := range i.Backends {
			backends[k] = true
		}
	}
	if c.NoSecrets {
		b.WriteString("The files contain no Secrets: certificates and users were not checked.\n")
	}
	if c.NoConfigMaps {
		b.WriteString("The files contain no ConfigMaps: header fields from ConfigMaps were not checked.\n")
	}
	if c.NoServices {
		b.WriteString("The files contain no Services: backends and policies were not checked.\n")
	}
	cut := c.policies(&b, slices.Sorted(maps.Keys(backends)))
	fmt.Fprintf(&b, "%d of %d Ingresses for Wayleave carry over completely; policies block %d backends; %d "+
		"Ingresses are for others.\n", good, ours, cut, len(checked)-ours)
	return b.String(), good == ours && cut == 0
}

// one reports one Ingress, and whether all of it carries over. differs are requests that ingress-nginx serves
// differently.
func (c IngressCheck) one(b *strings.Builder, i ingress.Checked, differs []string) bool {
	problems := slices.Clone(i.Problems)
	problems = slices.DeleteFunc(problems, func(p model.Problem) bool {
		absent := strings.Contains(p.Reason, " does not exist")
		return absent && (c.NoSecrets && strings.Contains(p.Reason, "Secret ") || c.NoConfigMaps &&
			strings.Contains(p.Reason, "ConfigMap ") || c.NoServices && strings.Contains(p.Reason, "Service "))
	})
	told := map[string]bool{}
	var ends []model.Problem // certificates that carry over as they are
	problems = slices.DeleteFunc(problems, func(p model.Problem) bool {
		if p.Event != "" {
			ends = append(ends, p)
		}
		return p.Event != ""
	})
	for _, p := range problems {
		fmt.Fprintf(b, "  NO   %s: %s\n", p.Field, p.Reason)
		told[p.Field] = true
	}
	translate(b, i.Ingress)
	isClosed := slices.ContainsFunc(problems, func(p model.Problem) bool {
		return strings.Contains(p.Reason, "all paths of this Ingress answer 503")
	})
	for _, key := range slices.Sorted(maps.Keys(i.Ingress.Annotations)) {
		if !told["metadata.annotations["+key+"]"] {
			fmt.Fprintf(b, "  ok   %s: %s\n", key, i.Ingress.Annotations[key])
		}
	}
	for _, r := range i.Ingress.Rules {
		for _, p := range r.Paths {
			at := fmt.Sprintf("spec.rules[%d].http.paths[%d]", r.Index, p.Index)
			switch {
			case told[at] || told[at+".backend.service"] || told[at+".path"]:
			case isClosed:
				fmt.Fprintf(b, "  NO   %s: %s%s answers 503 instead of going to Service %s\n", at,
					cmp.Or(r.Host, "(any host)"), p.Path, p.Backend.Service)
			default:
				word := "ok  "
				if len(differs) > 0 {
					word = "part" // requests below are served differently
				}
				fmt.Fprintf(b, "  %s %s: %s%s goes to Service %s\n", word, at, cmp.Or(r.Host, "(any host)"), p.Path,
					p.Backend.Service)
			}
		}
	}
	for _, d := range differs {
		fmt.Fprintf(b, "  diff %s\n", d)
	}
	for _, p := range ends {
		fmt.Fprintf(b, "  note %s: %s\n", p.Field, p.Reason)
	}
	return len(problems) == 0 && len(differs) == 0
}

// translate lists annotations that can replace snippets.
func translate(b *strings.Builder, i *model.Ingress) {
	texts := ingress.Snippets(i)
	values, from := map[string]string{}, map[string]string{}
	var left []string
	for _, key := range slices.Sorted(maps.Keys(texts)) {
		short := strings.TrimPrefix(key, "nginx.ingress.kubernetes.io/")
		t := ingress.Translate(key, texts[key])
		for _, a := range t.Annotations {
			switch old, there := values[a.Key]; {
			case !there:
				values[a.Key], from[a.Key] = a.Value, short
			case strings.HasSuffix(a.Key, "-headers"): // lines of several snippets
				values[a.Key], from[a.Key] = old+"\n"+a.Value, from[a.Key]+" and "+short
			case old != a.Value:
				left = append(left, fmt.Sprintf("%s: what would be %s: it already has another value", key, a))
			}
		}
		for _, d := range t.Left {
			left = append(left, fmt.Sprintf("%s: %s: there is no annotation for it", key, d))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(b, "  write %s: %q, in place of %s\n", key, values[key], from[key])
	}
	for _, l := range left {
		fmt.Fprintf(b, "  left  %s\n", l)
	}
}

// elsewhere stands for another node if the files have none. It is an address for documentation.
const elsewhere = "192.0.2.1"

// proxies returns the sources of connections to backends: for each node the proxy's address that policies know, or
// the node's own if it has none.
func (c IngressCheck) proxies() (out []networkpolicy.Party) {
	for n := range c.Snapshot.Nodes() {
		addrs := n.ProxyAddrs()
		if len(addrs) == 0 {
			addrs = n.InternalIPs
		}
		for _, a := range addrs {
			out = append(out, networkpolicy.Identify(c.Snapshot, networkpolicy.NodeInputs{Ingress: true}, a))
		}
	}
	if len(out) == 0 {
		out = []networkpolicy.Party{{Addr: netip.MustParseAddr(elsewhere), Node: "another node"}}
	}
	return out
}

// policies lists the backends that proxies cannot reach.
func (c IngressCheck) policies(b *strings.Builder, backends []string) (cut int) {
	nodes := c.proxies()
	for _, key := range backends {
		pods, by, from := map[string]bool{}, map[string]bool{}, map[string]bool{}
		help := "allow an ipBlock of the nodes' addresses"
		for _, e := range ingress.Endpoints(c.Snapshot, key) {
			to := networkpolicy.Identify(c.Snapshot, networkpolicy.NodeInputs{}, e.Addr())
			if to.Pod == nil {
				continue
			}
			for _, node := range nodes {
				if node.Addr.Is6() != e.Addr().Is6() || node.Node != "" && node.Node == to.Pod.Node {
					continue
				}
				if v := networkpolicy.Evaluate(c.Snapshot, node, to, model.TCP, e.Port()); !v.Allowed {
					pods[to.Pod.Name.Name], from[node.Addr.String()] = true, true
					if node.Proxy != "" {
						help = "allow pods of the namespace kube-system with the labels app.kubernetes.io/name: " +
							"wayleave and app.kubernetes.io/component: ingress"
					}
					for _, p := range v.Ingress.Policies {
						by[p.String()] = true
					}
				}
			}
		}
		if len(pods) == 0 {
			continue
		}
		cut++
		fmt.Fprintf(b, "Service %s\n  NO   NetworkPolicy %s denies the proxies (pods %s, from %s): %s\n",
			key, some(by), some(pods), some(from), help)
	}
	return cut
}

// some returns the first few items of a set.
func some(set map[string]bool) string {
	list := slices.Sorted(maps.Keys(set))
	const most = 5
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}
