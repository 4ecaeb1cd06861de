package networkpolicy

import (
	"maps"

	"wayleave.dev/model"
)

// Judge says which policies are affected by a change, and finds their Problems, for the elected writer. The Problems of
// a policy depend on the policy and on the pods of its namespace. They depend on all pods and namespaces when the
// policy looks up named ports in other namespaces, and on the cluster's address families when it has blocks.
//
// It is not safe for concurrent use.
type Judge struct {
	wide, blocks map[model.Name]struct{}
	families     map[bool]bool
}

// NewJudge makes one without policies. The first changes must name all objects, as those of a new Watcher of
// PlannerKinds do.
func NewJudge() *Judge {
	return &Judge{wide: map[model.Name]struct{}{}, blocks: map[model.Name]struct{}{}, families: map[bool]bool{}}
}

// Concerned returns the policies whose Problems may have changed, including policies that have gone. Several changes
// may precede one snapshot.
func (j *Judge) Concerned(snap model.Snapshot, changes ...model.Changes) map[model.Name]struct{} {
	out, namespaces := map[model.Name]struct{}{}, map[string]struct{}{}
	pods, nodes, labels := false, false, false
	for _, c := range changes {
		for n := range c.Of(model.NetworkPolicyKind) {
			out[n] = struct{}{}
			j.learn(snap, n)
		}
		for n := range c.Of(model.PodKind) {
			namespaces[n.Namespace] = struct{}{}
		}
		pods = pods || c.Any(model.PodKind)
		nodes = nodes || c.Any(model.NodeKind)
		labels = labels || c.Any(model.NamespaceKind)
	}
	for ns := range namespaces {
		for o := range snap.NetworkPoliciesOf(ns) {
			out[o.Name] = struct{}{}
		}
	}
	if pods || labels {
		maps.Copy(out, j.wide)
	}
	if pods || nodes {
		if now := families(snap); !maps.Equal(now, j.families) {
			j.families = now
			maps.Copy(out, j.blocks)
		}
	}
	return out
}

// Problems is Problems of a policy in the snapshot that Concerned was last asked about.
func (j *Judge) Problems(snap model.Snapshot, name model.Name) []model.Problem {
	return problems(snap, name, j.families)
}

// learn records what a policy depends on.
func (j *Judge) learn(snap model.Snapshot, n model.Name) {
	delete(j.wide, n)
	delete(j.blocks, n)
	o, ok := snap.NetworkPolicy(n)
	if !ok {
		return
	}
	for _, rules := range [][]model.PolicyRule{o.Ingress, o.Egress} {
		for _, r := range rules {
			for _, p := range r.Peers {
				if p.Block.IsValid() {
					j.blocks[n] = struct{}{}
				}
			}
		}
	}
	for _, r := range o.Egress {
		if _, names := rulePorts(r); len(names) == 0 {
			continue
		}
		for _, g := range peerGroups(n.Namespace, r) {
			if g.key.own == "" {
				j.wide[n] = struct{}{}
			}
		}
	}
}
