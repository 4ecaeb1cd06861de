package bgp

import (
	"fmt"
	"slices"

	"wayleave.dev/model"
)

// meshClass is the class of this node's blocks, which other nodes are told.
const meshClass = "pod networks"

// meshTTL is that of sessions between nodes of different ASNs, which may have routers between them.
const meshTTL = 255

// configurationKind is for problems.
const configurationKind = "BGPConfiguration"

// NodeSession is the name of the session with another node.
func NodeSession(node string) string { return "Node " + node }

// mesh plans the sessions with other nodes and what is exchanged in them: blocks of pods, and nothing else. A node
// is only believed what it says of its own blocks; a route reflector tells those of all nodes.
func (p *planner) mesh() {
	p.blocksOfPeers()
	if !p.cfg.Mesh.Enabled {
		return
	}
	password, ok := p.meshPassword()
	if !ok {
		return
	}
	c := Class{Name: meshClass}
	for _, n := range sorted(p.snap.Nodes(), func(n *model.Node) string { return n.Name }) {
		if !p.cfg.Meshed(p.me, n) || p.isPeer(n) {
			continue
		}
		if len(p.out.Sessions) >= MaxSessions {
			p.problem(configurationKind, model.BGPDefault, "spec.mesh", fmt.Sprintf("a node has at most %d "+
				"sessions; set routeReflectorSelector; further nodes are reached directly or by VXLAN", MaxSessions))
			break
		}
		s, ok := p.nodeSession(n)
		if !ok {
			continue
		}
		s.Password = password
		c.Sessions = append(c.Sessions, s.Name)
		p.out.Sessions = append(p.out.Sessions, s)
		if row := (Import{Sessions: []string{s.Name}, Prefixes: p.blocksOf(n), Accept: true}); len(row.Prefixes) > 0 {
			p.out.Imports = append(p.out.Imports, row)
		}
	}
	p.out.Classes = append(p.out.Classes, c)
	for _, cidr := range p.me.PodCIDRs {
		p.add(cidr, c.Name)
	}
}

// meshPassword is the key of TCP MD5 between nodes; ok is false if it is missing.
func (p *planner) meshPassword() (password string, ok bool) {
	key := p.cfg.Mesh.Password
	if key == (model.SecretKey{}) {
		return "", true
	}
	if password, ok = p.snap.Password(key); !ok || password == "" {
		p.problem(configurationKind, model.BGPDefault, "spec.mesh.passwordSecret", fmt.Sprintf("the Secret %s/%s "+
			"has no key %s; nodes have no sessions with each other without it", model.PeersNamespace,
			key.Name, key.Key))
		return "", false
	}
	return password, true
}

// nodeSession plans the session with another node. Of two nodes the first by name connects.
func (p *planner) nodeSession(n *model.Node) (s Session, ok bool) {
	for _, is6 := range []bool{!p.me.Primary(false).IsValid(), p.me.Primary(false).IsValid()} {
		if to, from := n.Primary(is6), p.me.Primary(is6); to.IsValid() && from.IsValid() {
			s.Addr, s.Source = to, from
			break
		}
	}
	if s.ASN = p.cfg.ASNOf(n); !s.Addr.IsValid() || s.ASN == 0 {
		return s, false // their objects say why
	}
	s.Name, s.Port, s.Passive = NodeSession(n.Name), p.cfg.Port, n.Name < p.me.Name
	s.Hold, s.Keepalive, s.Connect = p.cfg.Timers.Hold, p.cfg.Timers.Keepalive, p.cfg.Timers.Connect
	if p.cfg.Restart.Enabled {
		s.Restart, s.LongLived = p.cfg.Restart.Time, p.cfg.Restart.LongLived
	}
	if s.ASN != p.out.ASN {
		s.MultiHop = meshTTL
	}
	s.V4, s.V6 = true, true
	p.hops(&s)
	s.ClusterID = p.cfg.Mesh.ClusterID
	s.ReflectorClient = p.cfg.Reflects(p.me) && !p.cfg.Reflects(n) && s.ASN == p.out.ASN
	return s, s.Check() == nil
}

// isPeer says whether a BGPPeer is the node: it then says how the session is.
func (p *planner) isPeer(n *model.Node) bool {
	return slices.ContainsFunc(p.out.Sessions, func(s Session) bool { return slices.Contains(n.InternalIPs, s.Addr) })
}

// blocksOf are the blocks that the session with a node may bring.
func (p *planner) blocksOf(n *model.Node) []PrefixRange {
	if p.cfg.Reflects(n) {
		return p.otherBlocks()
	}
	var out []PrefixRange
	for _, cidr := range n.PodCIDRs {
		out = append(out, Exactly(cidr))
	}
	return out
}

// otherBlocks are the blocks of all other nodes.
func (p *planner) otherBlocks() (out []PrefixRange) {
	for n := range p.snap.Nodes() {
		if n.Name == p.me.Name {
			continue
		}
		for _, cidr := range n.PodCIDRs {
			out = append(out, Exactly(cidr))
		}
	}
	return out
}

// blocksOfPeers imports other nodes' blocks from BGPPeers: routers between segments tell them on.
func (p *planner) blocksOfPeers() {
	row := Import{Prefixes: p.otherBlocks(), Accept: true}
	for _, s := range p.out.Sessions {
		row.Sessions = append(row.Sessions, s.Name)
	}
	if len(row.Sessions) > 0 && len(row.Prefixes) > 0 {
		p.out.Imports = append(p.out.Imports, row)
	}
}
