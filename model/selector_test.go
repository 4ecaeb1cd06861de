package model

import "testing"

// A kubelet cannot set labels of Kubernetes' domains on its own Node, with the exceptions of the admission plugin
// NodeRestriction.
func TestWhatAKubeletMayMatch(t *testing.T) {
	for key, may := range map[string]bool{"reflector": true, "example.com/reflector": true, "notkubernetes.io/x": true,
		"node-restriction.kubernetes.io/reflector": false, "x.node-restriction.kubernetes.io/reflector": false,
		"node-role.kubernetes.io/control-plane": false, "kubernetes.io/x": false, "kubernetes.io/hostname": true,
		"k8s.io/x": false, "topology.kubernetes.io/zone": true, "node.kubernetes.io/x": true,
		"kubelet.kubernetes.io/x": true, "a.node.kubernetes.io/x": true} {
		for operator, alone := range map[Operator]bool{In: may, Exists: may, NotIn: true, DoesNotExist: true} {
			s := Selector{Requirements: []Requirement{{Key: key, Operator: operator}}}
			if got := s.KubeletMayMatch(); got != alone {
				t.Errorf("%s, operator %d: %t", key, operator, got)
			}
			s.Requirements = append(s.Requirements, Requirement{Key: "node-restriction.kubernetes.io/x",
				Operator: Exists})
			if s.KubeletMayMatch() {
				t.Errorf("%s beside a protected label: a kubelet may match", key)
			}
		}
	}
	if (Selector{Nothing: true}).KubeletMayMatch() || !(Selector{}).KubeletMayMatch() {
		t.Error("a selector of nothing can be matched, or one of everything cannot")
	}
}
