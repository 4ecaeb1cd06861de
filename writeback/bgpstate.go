package writeback

import (
	"fmt"

	"wayleave.dev/api"
	"wayleave.dev/model"
)

// Reasons of the condition Accepted.
const (
	ReasonAccepted = "Accepted"
	ReasonInvalid  = "Invalid"
	ReasonNoNodes  = "NoNodes"
	ReasonUnused   = "Unused"
	ReasonMissing  = "Missing"
)

// BGPState is the status of an object of BGP.
type BGPState struct {
	// Reason is ReasonAccepted for an object that is used.
	Reason, Message string
	// Nodes is how many nodes a BGPPeer is for.
	Nodes int32
}

// bgpState plans the status of an object. Package source reports invalid fields; problems are objects that are missing.
func bgpState(snap model.Snapshot, k BGPKey) (BGPState, bool, []model.Problem) {
	switch k.Kind {
	case api.BGPPeerKind:
		p, ok := snap.BGPPeer(k.Name)
		if !ok {
			return BGPState{}, false, nil
		}
		s, problems := peerState(snap, p)
		return s, true, problems
	case api.BGPConfigurationKind:
		for c := range snap.BGPConfigurations() {
			if c.Name == k.Name {
				return configurationState(c), true, unprotected(c)
			}
		}
	case api.BGPAdvertisementKind:
		if a, ok := snap.BGPAdvertisement(k.Name); ok {
			s, problems := advertisementState(snap, a)
			return s, true, problems
		}
	}
	return BGPState{}, false, nil
}

func peerState(snap model.Snapshot, p *model.BGPPeer) (s BGPState, problems []model.Problem) {
	for n := range snap.Nodes() {
		if p.Nodes.Matches(n.Labels) {
			s.Nodes++
		}
	}
	switch {
	case p.Invalid != "":
		s.Reason, s.Message = ReasonInvalid, p.Invalid+"; no node has a session with it"
	case s.Nodes == 0:
		s.Reason, s.Message = ReasonNoNodes, "spec.nodeSelector: selects no node"
		problems = append(problems, model.Problem{Kind: api.BGPPeerKind, Object: model.Name{Name: p.Name},
			Field: "spec.nodeSelector", Reason: "selects no node, so there is no session"})
	default:
		s.Reason, s.Message = ReasonAccepted, fmt.Sprintf("for %d nodes", s.Nodes)
	}
	return s, problems
}

// unprotected names a selector by which a captured node can make itself a route reflector: those are believed about the
// blocks of all nodes.
func unprotected(c *model.BGPConfiguration) []model.Problem {
	if c.Name != model.BGPDefault || !c.Mesh.Enabled || !c.Mesh.HasReflectors || !c.Mesh.Reflectors.KubeletMayMatch() {
		return nil
	}
	return []model.Problem{{Kind: api.BGPConfigurationKind, Object: model.Name{Name: c.Name},
		Field: "spec.mesh.routeReflectorSelector", Event: "UnprotectedLabel",
		Reason: "kubelets can set these labels on their own Nodes, and a route reflector can draw the packets of all " +
			"pods to itself; select by a label with the prefix node-restriction.kubernetes.io/; the selector is used " +
			"as it is"}}
}

func configurationState(c *model.BGPConfiguration) BGPState {
	switch {
	case c.Name != model.BGPDefault:
		return BGPState{Reason: ReasonUnused, Message: "only the BGPConfiguration " + model.BGPDefault + " is used"}
	case c.ASN == 0:
		return BGPState{Reason: ReasonInvalid, Message: c.Invalid + "; there are no sessions"}
	case c.Invalid != "":
		return BGPState{Reason: ReasonInvalid, Message: c.Invalid + "; the other fields are used"}
	}
	return BGPState{Reason: ReasonAccepted, Message: fmt.Sprintf("ASN %d", c.ASN)}
}

func advertisementState(snap model.Snapshot, a *model.BGPAdvertisement) (s BGPState, problems []model.Problem) {
	bad := func(field, format string, args ...any) {
		problems = append(problems, model.Problem{Kind: api.BGPAdvertisementKind, Object: model.Name{Name: a.Name},
			Field: field, Reason: fmt.Sprintf(format, args...)})
	}
	for i, name := range a.Pools {
		at := fmt.Sprintf("spec.pools[%d]", i)
		if p, ok := snap.AddressPool(name); !ok {
			bad(at, "there is no AddressPool %s", name)
		} else if !p.BGP {
			bad(at, "AddressPool %s is not announced by BGP; set its spec.bgp.enabled", name)
		}
	}
	for i, name := range a.Peers {
		if _, ok := snap.BGPPeer(name); !ok {
			bad(fmt.Sprintf("spec.peers[%d]", i), "there is no BGPPeer %s", name)
		}
	}
	switch {
	case a.Invalid != "":
		return BGPState{Reason: ReasonInvalid, Message: a.Invalid + "; nothing is announced for it"}, problems
	case len(problems) > 0:
		return BGPState{Reason: ReasonMissing, Message: problems[0].Field + ": " + problems[0].Reason}, problems
	}
	return BGPState{Reason: ReasonAccepted, Message: "announced"}, nil
}
