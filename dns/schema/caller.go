package schema

import (
	"slices"
	"strings"

	"wayleave.dev/model"
)

// Caller is a pod of this node, as far as its queries are concerned.
type Caller struct {
	Pod model.Name `json:"pod"`
	// Cluster means that the pod has the cluster's search list.
	Cluster bool `json:"cluster,omitempty"`
	// Searches are the pod's own additions to that list.
	Searches []string `json:"searches,omitempty"`
	// NDots is the option of that name in the pod's resolv.conf.
	NDots int `json:"ndots,omitempty"`
}

// Usual means that the pod has exactly the kubelet's default search list.
func (c Caller) Usual() bool { return c.Cluster && len(c.Searches) == 0 && c.NDots >= 2 }

// Equal compares two callers.
func (c Caller) Equal(o Caller) bool {
	return c.Pod == o.Pod && c.Cluster == o.Cluster && c.NDots == o.NDots && slices.Equal(c.Searches, o.Searches)
}

// ClusterSuffixes is the number of the cluster's own domains in a search list; they come first.
const ClusterSuffixes = 3

// Search returns the pod's search list, as the kubelet writes it: names without a final dot; the root is empty. node is
// the list of the node's resolv.conf.
func (c Caller) Search(domain string, node []string) []string {
	domain = strings.TrimSuffix(domain, ".")
	list := append([]string{c.Pod.Namespace + ".svc." + domain, "svc." + domain, domain}, node...)
	if !c.Cluster {
		list = nil
	}
	var out []string
	for _, s := range append(list, c.Searches...) {
		isRoot := s == "." // stands for the name itself
		if s = strings.ToLower(strings.TrimSuffix(s, ".")); (s != "" || isRoot) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
