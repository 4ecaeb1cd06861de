package networkpolicy

import (
	"fmt"
	"net/netip"
	"testing"

	"wayleave.dev/model"
)

// The size of the benchmark: 10 namespaces of 100 pods and 100 policies each. A policy
// selects the 10 pods of one application, lets in 10 pods of another, 100 of a namespace
// selector (10 namespaces share 5 environments) or a block, and lets out to DNS.
const (
	benchNamespaces = 10
	benchPods       = 1000
	benchPolicies   = 1000
)

func benchNamespace(i int) string { return fmt.Sprintf("ns%d", i%benchNamespaces) }

func benchPod(i, local int) *model.Pod {
	p := &model.Pod{Name: model.Name{Namespace: benchNamespace(i), Name: fmt.Sprintf("pod%d", i)}, Node: "there",
		IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})},
		Labels: map[string]string{"app": fmt.Sprintf("app%d", i/benchNamespaces%10), "team": fmt.Sprintf("team%d", i%7),
			"pod-template-hash": "6b7c9f"},
		Ports: []model.NamedPort{{Name: "web", Protocol: model.TCP, Port: 8080}}}
	if i%(benchPods/local) == 0 || i >= benchPods {
		p.Node = "here"
	}
	return p
}

func is(key, value string) model.Selector {
	return model.Selector{Requirements: []model.Requirement{{Key: key, Operator: model.In, Values: []string{value}}}}
}

func benchPolicy(i int) *model.NetworkPolicy {
	n := i / benchNamespaces // within the namespace
	env := is("env", fmt.Sprintf("env%d", n%5))
	kubeSystem := is("name", "kube-system")
	return &model.NetworkPolicy{
		Name:            model.Name{Namespace: benchNamespace(i), Name: fmt.Sprintf("policy%d", i)},
		Subject:         is("app", fmt.Sprintf("app%d", n%10)),
		IsolatesIngress: true, IsolatesEgress: true,
		Ingress: []model.PolicyRule{
			{Peers: []model.PolicyPeer{{Pods: is("app", fmt.Sprintf("app%d", (n+1)%10))},
				{Namespaces: &env, Pods: is("team", fmt.Sprintf("team%d", n%7))}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, Name: "web"}}},
			{Peers: []model.PolicyPeer{{Block: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n), 0}), 24)}},
				Ports: []model.PolicyPort{{Protocol: model.TCP, From: uint16(9000 + n), To: uint16(9000 + n)}}},
		},
		Egress: []model.PolicyRule{{Peers: []model.PolicyPeer{{Namespaces: &kubeSystem,
			Pods: is("k8s-app", "kube-dns")}},
			Ports: []model.PolicyPort{{Protocol: model.UDP, From: 53, To: 53}}}},
	}
}

func benchRig(b *testing.B, local int) *rig {
	r := newRig(b, NodeInputs{Node: "here", DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}})
	r.write(func(w *model.Writer) {
		w.PutNamespace(&model.Namespace{Name: "kube-system", Labels: map[string]string{"name": "kube-system"}})
		for i := range benchNamespaces {
			w.PutNamespace(&model.Namespace{Name: benchNamespace(i),
				Labels: map[string]string{"env": fmt.Sprintf("env%d", i%5)}})
		}
		for i := range benchPods {
			w.PutPod(benchPod(i, local))
		}
		for i := range benchPolicies {
			w.PutNetworkPolicy(benchPolicy(i))
		}
	})
	r.step()
	return r
}

// BenchmarkChange is one change among 1,000 policies and 1,000 pods, from the write to
// the planned entries, when some or all of the pods are on this node.
func BenchmarkChange(b *testing.B) {
	for _, local := range []int{100, 1000} {
		b.Run(fmt.Sprintf("local=%d", local), func(b *testing.B) {
			r := benchRig(b, local)
			for _, c := range []struct {
				name string
				do   func(w *model.Writer, i int)
			}{
				{"new pod here", func(w *model.Writer, i int) {
					if p := benchPod(benchPods, local); i%2 == 0 {
						w.PutPod(p)
					} else {
						w.Delete(model.PodKind, p.Name)
					}
				}},
				{"new pod elsewhere", func(w *model.Writer, i int) {
					p := benchPod(benchPods, local)
					p.Node = "there"
					if i%2 == 0 {
						w.PutPod(p)
					} else {
						w.Delete(model.PodKind, p.Name)
					}
				}},
				{"label of a pod", func(w *model.Writer, i int) {
					p := benchPod(500, local)
					p.Labels["app"] = fmt.Sprintf("app%d", i%2)
					w.PutPod(p)
				}},
				{"label that nobody selects", func(w *model.Writer, i int) {
					p := benchPod(501, local)
					p.Labels["pod-template-hash"] = fmt.Sprint(i)
					w.PutPod(p)
				}},
				{"policy", func(w *model.Writer, i int) {
					p := benchPolicy(500)
					p.Ingress[1].Ports[0].To = uint16(10000 + i%2)
					w.PutNetworkPolicy(p)
				}},
				{"label of a namespace", func(w *model.Writer, i int) {
					w.PutNamespace(&model.Namespace{Name: benchNamespace(0),
						Labels: map[string]string{"env": fmt.Sprintf("env%d", i%2)}})
				}},
			} {
				b.Run(c.name, func(b *testing.B) {
					i, keys := 0, 0
					for b.Loop() {
						r.write(func(w *model.Writer) { c.do(w, i) })
						keys += r.step()
						i++
					}
					b.ReportMetric(float64(keys)/float64(i), "keys/op")
				})
			}
			b.ReportMetric(float64(len(r.entries)), "entries")
		})
	}
}

// BenchmarkStart is a planner that starts with all of it.
func BenchmarkStart(b *testing.B) {
	for _, local := range []int{100, 1000} {
		b.Run(fmt.Sprintf("local=%d", local), func(b *testing.B) {
			r := benchRig(b, local)
			for b.Loop() {
				r.fresh()
			}
			b.ReportMetric(float64(len(r.entries)), "entries")
			b.ReportMetric(float64(len(r.planner.profiles)), "profiles")
			b.ReportMetric(float64(len(r.planner.groups)), "groups")
		})
	}
}

// BenchmarkProblems is what the writer does ten seconds after a change among 1,000
// policies and 1,000 pods; "all" is all policies, as at its start.
func BenchmarkProblems(b *testing.B) {
	r := benchRig(b, 100)
	r.watch.Close()
	var err error
	if r.watch, err = r.store.Watch(PlannerKinds); err != nil {
		b.Fatal(err)
	}
	judge := NewJudge()
	run := func() int {
		snap, c, _ := r.watch.Poll()
		concerned := judge.Concerned(snap, c)
		for n := range concerned {
			judge.Problems(snap, n)
		}
		return len(concerned)
	}
	run()
	b.Run("all", func(b *testing.B) {
		snap := r.store.Snapshot()
		for b.Loop() {
			for o := range snap.NetworkPolicies() {
				judge.Problems(snap, o.Name)
			}
		}
	})
	for name, do := range map[string]func(*model.Writer, int){
		"pod": func(w *model.Writer, i int) {
			p := benchPod(500, 100)
			p.Labels["app"] = fmt.Sprintf("app%d", i%2)
			w.PutPod(p)
		},
		"policy": func(w *model.Writer, i int) {
			p := benchPolicy(500)
			p.Ingress[1].Ports[0].To = uint16(10000 + i%2)
			w.PutNetworkPolicy(p)
		},
	} {
		b.Run(name, func(b *testing.B) {
			i, n := 0, 0
			for b.Loop() {
				r.write(func(w *model.Writer) { do(w, i) })
				n += run()
				i++
			}
			b.ReportMetric(float64(n)/float64(i), "policies/op")
		})
	}
}
