package source

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"wayleave.dev/model"
)

// policy reads a spec as it is written in YAML.
func policy(t *testing.T, spec string) (*model.NetworkPolicy, []model.Problem) {
	t.Helper()
	in := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p", UID: "u"}}
	if err := yaml.UnmarshalStrict([]byte(spec), &in.Spec); err != nil {
		t.Fatal(err)
	}
	return NetworkPolicy(in)
}

func TestNetworkPolicies(t *testing.T) {
	for _, tc := range []struct{ name, spec, want string }{
		{"types are missing", "{podSelector: {}}", "ingress []"},
		{"an empty list of egress is none", "{podSelector: {}, egress: []}", "ingress []"},
		{"egress rules bring the type", "{podSelector: {}, egress: [{}]}", "ingress [] egress [any any]"},
		{"only egress", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [], to: []}]}", "egress [any any]"},
		{"both", "{podSelector: {}, policyTypes: [Ingress, Egress]}", "ingress [] egress []"},
		{"a port without a number", "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}",
			"ingress [any UDP 0-65535]"},
		{"ports", "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: web, protocol: SCTP}, {port: 1, " +
			"endPort: 65535}]}]}", "ingress [any TCP 80-80,SCTP web,TCP 1-65535]"},
		{"host bits have no meaning",
			"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.9.9.9/16]}}]}]}",
			"ingress [10.0.0.0/8-10.9.0.0/16 any]"},
		{"selectors", "{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}, " +
			"{namespaceSelector: {}, podSelector: {}}]}]}", "ingress [own,all,all any]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, problems := policy(t, tc.spec)
			if len(problems) > 0 || out.UID != "u" || out.Name.String() != "x/p" {
				t.Fatal(problems, out)
			}
			if got := policyText(out); got != tc.want {
				t.Errorf("read %s, want %s", got, tc.want)
			}
		})
	}
}

func policyText(p *model.NetworkPolicy) string {
	var parts []string
	for _, d := range []struct {
		name  string
		on    bool
		rules []model.PolicyRule
	}{{"ingress", p.IsolatesIngress, p.Ingress}, {"egress", p.IsolatesEgress, p.Egress}} {
		if d.on {
			var rules []string
			for _, r := range d.rules {
				rules = append(rules, ruleText(r))
			}
			parts = append(parts, d.name+" ["+strings.Join(rules, "; ")+"]")
		}
	}
	return strings.Join(parts, " ")
}

func ruleText(r model.PolicyRule) string {
	var peers, ports []string
	if r.AnyPeer {
		peers = append(peers, "any")
	}
	for _, p := range r.Peers {
		s := "own"
		if p.Namespaces != nil {
			s = "all"
		}
		if p.Block.IsValid() {
			s = p.Block.String()
		}
		for _, e := range p.Except {
			s += "-" + e.String()
		}
		peers = append(peers, s)
	}
	if r.AnyPort {
		ports = append(ports, "any")
	}
	for _, p := range r.Ports {
		if p.Name != "" {
			ports = append(ports, fmt.Sprintf("%s %s", p.Protocol, p.Name))
			continue
		}
		ports = append(ports, fmt.Sprintf("%s %d-%d", p.Protocol, p.From, p.To))
	}
	return strings.Join(peers, ",") + " " + strings.Join(ports, ",")
}

// What is bad is named by its field and allows nothing; the rest of the policy holds.
func TestBadNetworkPolicies(t *testing.T) {
	from := func(peer string) string {
		return "{podSelector: {}, ingress: [{from: [" + peer + ", {podSelector: {}}], ports: [{port: 1}]}]}"
	}
	port := func(port string) string {
		return "{podSelector: {}, ingress: [{ports: [" + port + ", {port: 1}]}]}"
	}
	const onePeer, onePort = "ingress [own TCP 1-1]", "ingress [any TCP 1-1]"
	for _, tc := range []struct{ name, spec, field, want string }{
		{"type", "{podSelector: {}, policyTypes: [Ingress, Sideways]}", "spec.policyTypes[1]", "ingress []"},
		{"ingress without its type", "{podSelector: {}, policyTypes: [Egress], ingress: [{}]}",
			"spec.ingress", "egress []"},
		{"egress without its type", "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", "spec.egress",
			"ingress []"},
		{"empty peer", from("{}"), "spec.ingress[0].from[0]", onePeer},
		{"block and selector", from("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"),
			"spec.ingress[0].from[0].ipBlock", onePeer},
		{"no CIDR", from("{ipBlock: {cidr: 10.0.0.0}}"), "spec.ingress[0].from[0].ipBlock.cidr", onePeer},
		{"mapped, and others", from("{ipBlock: {cidr: '::ffff:10.0.0.0/8'}}"),
			"spec.ingress[0].from[0].ipBlock.cidr", onePeer},
		{"an exception that is none opens nothing", from("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/40]}}"),
			"spec.ingress[0].from[0].ipBlock.except[0]", onePeer},
		{"an exception elsewhere",
			"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
			"spec.ingress[0].from[0].ipBlock.except[0]", "ingress [10.0.0.0/8 any]"},
		{"selector of pods", from("{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}"),
			"spec.ingress[0].from[0].podSelector.matchExpressions[0].operator", onePeer},
		{"selector of namespaces", from(
			"{namespaceSelector: {matchExpressions: [{key: a, operator: Exists, values: ['1']}]}}"),
			"spec.ingress[0].from[0].namespaceSelector.matchExpressions[0].values", onePeer},
		{"protocol", port("{protocol: ICMP}"), "spec.ingress[0].ports[0].protocol", onePort},
		{"port", port("{port: 65536}"), "spec.ingress[0].ports[0].port", onePort},
		{"port zero", port("{port: 0}"), "spec.ingress[0].ports[0].port", onePort},
		{"a number in quotes", port("{port: '80'}"), "spec.ingress[0].ports[0].port", onePort},
		{"end without begin", port("{endPort: 80}"), "spec.ingress[0].ports[0].endPort", onePort},
		{"end of a name", port("{port: web, endPort: 80}"), "spec.ingress[0].ports[0].endPort", onePort},
		{"end before begin", port("{port: 81, endPort: 80}"), "spec.ingress[0].ports[0].endPort", onePort},
		{"end too high", port("{port: 81, endPort: 70000}"), "spec.ingress[0].ports[0].endPort", onePort},
		{"all of a list is bad: nothing is allowed", "{podSelector: {}, ingress: [{from: [{}]}]}",
			"spec.ingress[0].from[0]", "ingress [ any]"},
		{"all ports are bad: nothing is allowed", "{podSelector: {}, ingress: [{ports: [{port: 0}]}]}",
			"spec.ingress[0].ports[0].port", "ingress [any ]"},
		{"a name with addresses",
			"{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 1}, {port: web}]}]}",
			"spec.egress[0].ports[1].port", "ingress [] egress [10.0.0.0/8 TCP 1-1,TCP web]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, problems := policy(t, tc.spec)
			if len(problems) != 1 || problems[0].Field != tc.field || !strings.HasPrefix(problems[0].Error(),
				"NetworkPolicy x/p: spec.") {
				t.Errorf("problems are %v, want one of %s", problems, tc.field)
			}
			if got := policyText(out); got != tc.want {
				t.Errorf("read %s, want %s", got, tc.want)
			}
		})
	}
	out, problems := policy(t, "{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}")
	if out.Subject.Matches(nil) || !slices.ContainsFunc(problems,
		func(p model.Problem) bool { return p.Field == "spec.podSelector" }) {
		t.Errorf("a subject that cannot be read: %+v, %v", out, problems)
	}
}

// Of pods that is kept what policies ask for: labels, UID, named ports, and pods that
// have a node and no address yet.
func TestPodsForPolicies(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	ports := func(name string, n int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: name, ContainerPort: n}, {ContainerPort: 9}}
	}
	in := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b", UID: "u",
		Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Ports: ports("web", 80)}, {Ports: ports("web", 81)},
				{Ports: ports("web", 81)}, {Ports: ports("bad", 0)}},
			InitContainers: []corev1.Container{{Ports: ports("init", 1)},
				{Ports: ports("side", 2), RestartPolicy: &always}},
		}}
	if p, _ := Pod(in); p != nil {
		t.Errorf("a pod on no node was kept: %+v", p)
	}
	in.Spec.NodeName = "n"
	p, problems := Pod(in)
	if p == nil || len(p.IPs) != 0 || p.UID != "u" || p.Labels["app"] != "web" ||
		fmt.Sprint(p.Ports) != "[{web TCP 80} {web TCP 81} {side TCP 2}]" {
		t.Errorf("read %+v", p)
	}
	if len(problems) != 1 || problems[0].Field != "spec.containers[3].ports[0].containerPort" {
		t.Errorf("problems are %v", problems)
	}
}

// A policy of any size costs a bounded amount of work: parts over the bounds allow nothing, and are named.
func TestAPolicyHasBounds(t *testing.T) {
	many := func(n int, text string) string { return strings.TrimSuffix(strings.Repeat(text+", ", n), ", ") }
	for _, tc := range []struct {
		name, spec, problem    string
		rules, ports, selected int
	}{
		{"rules", "{podSelector: {}, ingress: [" + many(maxPolicyRules+5, "{}") + "]}", "spec.ingress",
			maxPolicyRules, 0, 0},
		{"ports", "{podSelector: {}, egress: [{ports: [" + many(maxPolicyPorts+5, "{port: 1}") +
			"]}, {ports: [{port: 2}]}]}",
			"spec.egress[0].ports", 2, maxPolicyPorts, 0},
		{"selectors", "{podSelector: {}, ingress: [{from: [" + many(maxPolicySelectors+5, "{podSelector: {}}") + "]}]}",
			"spec.ingress[0].from[1024]", 1, 0, maxPolicySelectors},
	} {
		out, problems := policy(t, tc.spec)
		rules, ports, selected := 0, 0, 0
		for _, r := range slices.Concat(out.Ingress, out.Egress) {
			rules++
			ports += len(r.Ports)
			selected += len(r.Peers)
			if tc.ports > 0 && r.AnyPort || tc.selected > 0 && r.AnyPeer {
				t.Errorf("%s: a rule over the bound allows everything", tc.name)
			}
		}
		if rules != tc.rules || ports != tc.ports || selected != tc.selected {
			t.Errorf("%s: %d rules, %d ports, %d selectors", tc.name, rules, ports, selected)
		}
		if len(problems) != 1 || problems[0].Field != tc.problem ||
			!strings.Contains(problems[0].Reason, "allow nothing") {
			t.Errorf("%s: the problems are %v", tc.name, problems)
		}
	}
}
