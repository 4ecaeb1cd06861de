package manifest

import (
	"fmt"
	"regexp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Terms of Calico's selectors that a label selector has.
var (
	calicoEquals = regexp.MustCompile(`^([\w./-]+)\s*(==|!=)\s*(?:'([^']*)'|"([^"]*)")$`)
	calicoHas    = regexp.MustCompile(`^(!?)\s*has\(\s*([\w./-]+)\s*\)$`)
	calicoIn     = regexp.MustCompile(`^([\w./-]+)\s+(in|not\s+in)\s*\{([^}]*)\}$`)
)

// calicoSelector converts a selector of Calico: terms joined by &&. Others, such as those with ||, are an error. nil
// selects everything.
func calicoSelector(text string) (*metav1.LabelSelector, error) {
	text = strings.TrimSpace(text)
	if text == "" || text == "all()" {
		return nil, nil
	}
	out := &metav1.LabelSelector{}
	for term := range strings.SplitSeq(text, "&&") {
		term = strings.TrimSpace(term)
		if term == "all()" {
			continue
		}
		r, ok := calicoTerm(term)
		if !ok {
			return nil, fmt.Errorf("%q has no equal: terms such as all(), has(LABEL), LABEL == 'VALUE' and "+
				"LABEL in {'VALUE'}, joined by &&, have", text)
		}
		out.MatchExpressions = append(out.MatchExpressions, r)
	}
	return out, nil
}

func calicoTerm(term string) (r metav1.LabelSelectorRequirement, ok bool) {
	if m := calicoHas.FindStringSubmatch(term); m != nil {
		r.Key, r.Operator = m[2], metav1.LabelSelectorOpExists
		if m[1] != "" {
			r.Operator = metav1.LabelSelectorOpDoesNotExist
		}
		return r, true
	}
	if m := calicoEquals.FindStringSubmatch(term); m != nil {
		r.Key, r.Operator, r.Values = m[1], metav1.LabelSelectorOpIn, []string{m[3] + m[4]}
		if m[2] == "!=" {
			r.Operator = metav1.LabelSelectorOpNotIn
		}
		return r, true
	}
	m := calicoIn.FindStringSubmatch(term)
	if m == nil {
		return r, false
	}
	r.Key, r.Operator = m[1], metav1.LabelSelectorOpIn
	if m[2] != "in" {
		r.Operator = metav1.LabelSelectorOpNotIn
	}
	for v := range strings.SplitSeq(m[3], ",") {
		v = strings.TrimSpace(v)
		if len(v) < 2 || v[0] != v[len(v)-1] || v[0] != '\'' && v[0] != '"' {
			return r, false
		}
		r.Values = append(r.Values, v[1:len(v)-1])
	}
	return r, true
}
