package world_test

import (
	"testing"

	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/networkpolicy/world"
)

// apiRows are the sentences of the reference of NetworkPolicy v1, field by field, and
// others' corner cases, each with a set that shows what it means.
func apiRows() []struct{ field, says, set string } {
	return []struct{ field, says, set string }{
		{"spec.podSelector", "An empty selector matches all pods in the policy's namespace", `
policy u/p: {podSelector: {}}
in u/*: none`},
		{"spec.podSelector", "If it is not specified, it defaults to an empty selector", `
policy u/p: {policyTypes: [Ingress]}
in u/*: none`},
		{"spec.podSelector",
			"Multiple network policies can select the same set of pods: the rules are combined additively", `
policy u/p: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}
policy u/q: {podSelector: {}, ingress: [{ports: [{port: 81}]}]}
in u/*: tcp80,tcp81 from all`},
		{"spec.ingress", "Traffic is allowed to a pod if there are no NetworkPolicies selecting the pod", `
policy u/p: {podSelector: {matchLabels: {pod: a}}}
in u/a: none`},
		{"spec.ingress", "OR if the traffic matches at least one ingress rule across all of the policies", `
policy u/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {ports: [{port: 80}]}]}
policy u/q: {podSelector: {}}
in u/*: any from u/*; tcp80 from all`},
		{"spec.ingress", "If this field is empty the policy does not allow any traffic", `
policy u/p: {podSelector: {}, ingress: []}
in u/*: none`},
		{"spec.egress", "Outgoing traffic is allowed if there are no NetworkPolicies selecting the pod", `
policy u/p: {podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress]}
out u/b: none`},
		{"spec.egress", "OR if the traffic matches at least one egress rule across all of the policies", `
policy u/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}
policy u/q: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}
out u/*: tcp80 to all; any to u/*`},
		{"spec.egress", "If this field is empty the policy limits all outgoing traffic", `
policy u/p: {podSelector: {}, policyTypes: [Egress]}
out u/*: none`},
		{"spec.policyTypes",
			"Policies that contain an egress section are assumed to affect egress, and all policies ingress", `
policy u/p: {podSelector: {}, egress: [{ports: [{port: 80}]}]}
in u/*: none
out u/*: tcp80 to all`},
		{"spec.policyTypes", "For an egress-only policy, you must explicitly specify Egress", `
policy u/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}
out u/*: tcp80 to all`},
		{"spec.policyTypes", "A policy that allows no egress must include Egress", `
policy u/p: {podSelector: {}, policyTypes: [Ingress, Egress]}
in u/*: none
out u/*: none`},
		{"ingress", "The traffic must match both ports and from", `
policy u/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}
in u/*: tcp80 from u/*`},
		{"ingress.ports", "Each item is combined using a logical OR", `
policy u/p: {podSelector: {}, ingress: [{ports: [{port: 80}, {port: 81, protocol: UDP}]}]}
in u/*: tcp80,udp81 from all`},
		{"ingress.ports", "If empty or missing, this rule matches all ports", `
policy u/p: {podSelector: {}, ingress: [{ports: [], from: [{podSelector: {}}]}]}
in u/*: any from u/*`},
		{"ingress.from", "Items are combined using a logical OR", `
policy u/p:
  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}, {namespaceSelector: {matchLabels: {ns: v}}}]}]
in u/*: any from u/a,v/*`},
		{"ingress.from", "If empty or missing, this rule matches all sources", `
policy u/p: {podSelector: {}, ingress: [{from: []}]}
in u/*: any from all`},
		{"egress", "The traffic must match both ports and to", `
policy u/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: 80}]}]}
out u/*: tcp80 to u/*`},
		{"egress.to", "If empty or missing, this rule matches all destinations", `
policy u/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [], ports: [{port: 80}]}]}
out u/*: tcp80 to all`},
		{"port.protocol", "If not specified, this field defaults to TCP", `
policy u/p: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}
in u/*: tcp80 from all`},
		{"port.port", "If not provided, this matches all port names and numbers", `
policy u/p: {podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}
in u/*: udp from all`},
		{"port.port", "A numerical or named port on a pod", `
ports u/a web=tcp82
policy u/p: {podSelector: {}, ingress: [{ports: [{port: web}]}]}
in u/a: tcp82 from all
in u/b,u/c: tcp80 from all`},
		{"port.port", "Only traffic on the specified protocol AND port is matched", `
policy u/p: {podSelector: {}, ingress: [{ports: [{port: web, protocol: UDP}]}]}
in u/*: none`},
		{"port.endPort", "The range of ports from port to endPort, inclusive", `
policy u/p: {podSelector: {}, ingress: [{ports: [{port: 81, endPort: 82}]}]}
in u/*: tcp81,tcp82 from all`},
		{"peer.podSelector", "If present but empty, it selects all pods, in the policy's own namespace", `
policy u/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}
in u/*: any from u/*`},
		{"peer.podSelector", "With namespaceSelector: the pods matching podSelector in these namespaces", `
policy u/p:
  podSelector: {}
  ingress: [{from: [{podSelector: {matchLabels: {pod: b}}, namespaceSelector: {matchLabels: {ns: w}}}]}]
in u/*: any from w/b`},
		{"peer.namespaceSelector", "If present but empty, it selects all namespaces", `
policy u/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}
in u/*: any from */*`},
		{"peer.namespaceSelector", "Otherwise it selects all pods in these namespaces", `
policy u/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: v}}}]}]}
in u/*: any from v/*`},
		{"ipBlock.cidr", "A particular CIDR that is allowed", `
policy u/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}
in u/*: ipv4 any from outside`},
		{"ipBlock.except", "CIDRs that should not be included within this rule", `
policy u/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24, 10.244.3.0/24]}}]}]}
in u/*: ipv4 any from u/*,v/*`},
		{"concepts", "For a connection to be allowed, both the egress policy of the source and the ingress policy " +
			"of the destination need to allow it", `
policy u/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: v}}}]}]}
policy v/p: {podSelector: {matchLabels: {pod: a}}}
out u/*: any to v/*
in v/a: none`},
		{"concepts", "A pod cannot block access to itself", `
policy u/p: {podSelector: {}, policyTypes: [Ingress, Egress]}
in u/*: none
out u/*: none`},
		{"projectcalico/calico#4373", "An empty port beside a number is all of TCP, not the number alone", `
policy u/p:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - {ports: [{}, {port: 80}], to: [{namespaceSelector: {matchLabels: {ns: v}}, podSelector: {matchLabels: {pod: b}}}]}
  - {ports: [{port: 53, protocol: UDP}]}
out u/a: tcp to v/b`},
	}
}

func TestTheAPIDocumentationRowByRow(t *testing.T) {
	for _, row := range apiRows() {
		t.Run(row.field+": "+row.says, func(t *testing.T) {
			sets, err := world.Read("api", "== row"+row.set)
			if err != nil {
				t.Fatal(err)
			}
			store, err := model.NewStore()
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			if err := sets[0].Steps[0].Put(store); err != nil {
				t.Fatal(err)
			}
			who := identities(store.Snapshot())
			for p := range sets[0].Steps[0].ProbesOf(model.TCP, model.UDP, model.SCTP, 1) {
				if got := networkpolicy.Evaluate(store.Snapshot(), who(p.From, p.IPv6), who(p.To, p.IPv6), p.Protocol,
					p.Port); got.Allowed != p.Want {
					t.Fatalf("%s: allowed is %v, documented %v", p, got.Allowed, p.Want)
				}
			}
		})
	}
}
