package model

import "slices"

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
