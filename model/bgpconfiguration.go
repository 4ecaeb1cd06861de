package model

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// BGPDefault is the name of the one BGPConfiguration that counts.
const BGPDefault = "default"

// What a cluster without a BGPConfiguration has, and one whose fields are not set.
const (
	BGPDefaultASN       = 64512
	BGPDefaultPort      = 179
	BGPDefaultHold      = 90 * time.Second
	BGPDefaultKeepalive = 30 * time.Second
	BGPDefaultConnect   = 10 * time.Second
	BGPDefaultRestart   = 120 * time.Second
	// BGPDefaultPrefixes is how many routes a peer may send, per family.
	BGPDefaultPrefixes = 10000
)

// BGPConfiguration is what all nodes have in common.
type BGPConfiguration struct {
	Name string
	UID  string
	// ASN is that of nodes which neither have an annotation nor are selected by NodeASNs, of which the first that
	// selects a node counts. 0 means that the one in the object is invalid: there are no sessions then.
	ASN      uint32
	NodeASNs []BGPNodeASN
	// Port is where nodes listen.
	Port    uint16
	Mesh    BGPMesh
	Timers  BGPTimers
	Restart BGPRestart
	// Invalid is what is wrong with it, for its condition; empty when nothing is.
	Invalid string
}

// BGPNodeASN is the ASN of some nodes.
type BGPNodeASN struct {
	Nodes Selector
	ASN   uint32
}

// BGPMesh is how nodes tell each other of their pods' networks, with `routing: bgp`.
type BGPMesh struct {
	// Enabled has sessions between nodes.
	Enabled bool
	// Reflectors selects route reflectors (RFC 4456). Nodes have sessions only with these, and these with each other.
	// It counts only if HasReflectors is set; without, each node has a session with each other.
	Reflectors    Selector
	HasReflectors bool
	// ClusterID is that of the route reflectors; the zero Addr is each one's router ID.
	ClusterID netip.Addr
	// Password is the key of TCP MD5 between nodes.
	Password SecretKey
}

// DefaultBGP is the configuration of a cluster that has no object.
func DefaultBGP() *BGPConfiguration {
	return &BGPConfiguration{Name: BGPDefault, ASN: BGPDefaultASN, Port: BGPDefaultPort, Mesh: BGPMesh{Enabled: true},
		Timers:  BGPTimers{Hold: BGPDefaultHold, Keepalive: BGPDefaultKeepalive, Connect: BGPDefaultConnect},
		Restart: BGPRestart{Enabled: true, Time: BGPDefaultRestart}}
}

// ASNOf is a node's own ASN, 0 for none.
func (c *BGPConfiguration) ASNOf(n *Node) uint32 {
	if n.BGP.ASN != 0 {
		return n.BGP.ASN
	}
	for _, a := range c.NodeASNs {
		if a.Nodes.Matches(n.Labels) {
			return a.ASN
		}
	}
	return c.ASN
}

// TimersOf are the timers of the sessions with a peer.
func (c *BGPConfiguration) TimersOf(p *BGPPeer) BGPTimers { return p.Timers.Or(c.Timers) }

// RestartOf is the graceful restart of the sessions with a peer.
func (c *BGPConfiguration) RestartOf(p *BGPPeer) BGPRestart {
	if p.Restart != nil {
		return *p.Restart
	}
	return c.Restart
}

// Reflects says whether the node is a route reflector.
func (c *BGPConfiguration) Reflects(n *Node) bool {
	return c.Mesh.Enabled && c.Mesh.HasReflectors && c.Mesh.Reflectors.Matches(n.Labels)
}

// Meshed says whether two nodes have a session with each other.
func (c *BGPConfiguration) Meshed(a, b *Node) bool {
	if !c.Mesh.Enabled || a.Name == b.Name {
		return false
	}
	return !c.Mesh.HasReflectors || c.Reflects(a) || c.Reflects(b)
}

// Equal compares two configurations.
func (c *BGPConfiguration) Equal(o *BGPConfiguration) bool {
	return c.Name == o.Name && c.UID == o.UID && c.ASN == o.ASN && c.Port == o.Port && c.Timers == o.Timers &&
		c.Restart == o.Restart && c.Invalid == o.Invalid && c.Mesh.Enabled == o.Mesh.Enabled &&
		c.Mesh.HasReflectors == o.Mesh.HasReflectors && c.Mesh.Reflectors.Equal(o.Mesh.Reflectors) &&
		c.Mesh.ClusterID == o.Mesh.ClusterID && c.Mesh.Password == o.Mesh.Password &&
		slices.EqualFunc(c.NodeASNs, o.NodeASNs, func(a, b BGPNodeASN) bool {
			return a.ASN == b.ASN && a.Nodes.Equal(b.Nodes)
		})
}

var bgpConfigurations = describe(descriptor[*BGPConfiguration]{kind: BGPConfigurationKind, label: "BGPConfiguration",
	name: func(c *BGPConfiguration) Name { return Name{Name: c.Name} }})

// PutBGPConfiguration sets a configuration; the store owns it from now on.
func (w *Writer) PutBGPConfiguration(o *BGPConfiguration) { put(w, bgpConfigurations, o) }

// BGP returns the configuration that counts: DefaultBGP if there is none.
func (v Snapshot) BGP() *BGPConfiguration {
	if c, ok := get(v, bgpConfigurations, Name{Name: BGPDefault}); ok {
		return c
	}
	return DefaultBGP()
}

// BGPConfigurations yields all configurations, also those that do not count.
func (v Snapshot) BGPConfigurations() iter.Seq[*BGPConfiguration] { return all(v, bgpConfigurations) }
