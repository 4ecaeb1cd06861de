package model

import (
	"slices"
	"strings"
)

// Operator is how a Requirement looks at a label.
type Operator uint8

// The operators of Kubernetes' label selectors.
const (
	In Operator = iota
	NotIn
	Exists
	DoesNotExist
)

// Requirement is one condition of a Selector.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}

// Selector selects by labels: all of its requirements must hold. The zero Selector
// selects everything.
type Selector struct {
	Requirements []Requirement
	// Nothing selects nothing: that is what becomes of a selector that cannot be read.
	Nothing bool
}

// Matches says whether the labels fulfil the selector.
func (s Selector) Matches(labels map[string]string) bool {
	if s.Nothing {
		return false
	}
	return !slices.ContainsFunc(s.Requirements, func(r Requirement) bool { return !r.holds(labels) })
}

func (r Requirement) holds(labels map[string]string) bool {
	v, there := labels[r.Key]
	switch r.Operator {
	case In:
		return there && slices.Contains(r.Values, v)
	case NotIn: // as Kubernetes: a label that is not there is not in
		return !there || !slices.Contains(r.Values, v)
	case Exists:
		return there
	case DoesNotExist:
		return !there
	}
	return false
}

// Equal compares two selectors.
func (s Selector) Equal(o Selector) bool {
	return s.Nothing == o.Nothing && slices.EqualFunc(s.Requirements, o.Requirements, func(a, b Requirement) bool {
		return a.Key == b.Key && a.Operator == b.Operator && slices.Equal(a.Values, b.Values)
	})
}

// KubeletMayMatch says whether a kubelet can label its own Node so that the selector matches. The admission plugin
// NodeRestriction keeps kubelets from labels of Kubernetes' domains, with the exceptions below.
func (s Selector) KubeletMayMatch() bool {
	return !s.Nothing && !slices.ContainsFunc(s.Requirements, func(r Requirement) bool {
		return (r.Operator == In || r.Operator == Exists) && !kubeletMaySet(r.Key)
	})
}

// kubeletMaySet follows k8s.io/kubelet/pkg/apis.
func kubeletMaySet(key string) bool {
	domain, name, ok := strings.Cut(key, "/")
	if !ok || !isBelow(domain, "kubernetes.io") && !isBelow(domain, "k8s.io") {
		return true
	}
	switch domain {
	case "kubernetes.io", "beta.kubernetes.io":
		return slices.Contains([]string{"hostname", "arch", "os", "instance-type"}, name)
	case "topology.kubernetes.io", "failure-domain.beta.kubernetes.io":
		return true
	}
	return isBelow(domain, "kubelet.kubernetes.io") || isBelow(domain, "node.kubernetes.io")
}

// isBelow says whether a domain is another one, or below it.
func isBelow(domain, top string) bool { return domain == top || strings.HasSuffix(domain, "."+top) }
