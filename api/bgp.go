package api

import (
	_ "embed"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Resources and kinds of BGP.
const (
	BGPPeers             = "bgppeers"
	BGPPeerKind          = "BGPPeer"
	BGPConfigurations    = "bgpconfigurations"
	BGPConfigurationKind = "BGPConfiguration"
	BGPAdvertisements    = "bgpadvertisements"
	BGPAdvertisementKind = "BGPAdvertisement"
)

// Annotations of a Node: its ASN, and its BGP identifier (an IPv4 address).
const (
	ASNAnnotation      = "wayleave.dev/bgp-asn"
	RouterIDAnnotation = "wayleave.dev/bgp-router-id"
)

// The YAML of the CustomResourceDefinitions of BGP.
var (
	//go:embed bgppeer.yaml
	BGPPeerCRD []byte
	//go:embed bgpconfiguration.yaml
	BGPConfigurationCRD []byte
	//go:embed bgpadvertisement.yaml
	BGPAdvertisementCRD []byte
)

// BGPPeer is a router, or several, that nodes have BGP sessions with.
type BGPPeer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              BGPPeerSpec   `json:"spec"`
	Status            BGPPeerStatus `json:"status,omitempty"`
}

// BGPPeerSpec is the desired state.
type BGPPeerSpec struct {
	// NodeSelector selects the nodes that have the session; unset selects all.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Address, Interface and AddressRange name the peer; exactly one is set. Interface is a link with the peer's IPv6
	// link-local address at its other end. AddressRange is a CIDR of at most 256 addresses from which
	// peers connect.
	Address      string `json:"address,omitempty"`
	Interface    string `json:"interface,omitempty"`
	AddressRange string `json:"addressRange,omitempty"`
	// ASN is the peer's. In its place, ASNType accepts whatever ASN the peer has: Internal (that of the node) or
	// External (any other).
	ASN     int64  `json:"asn,omitempty"`
	ASNType string `json:"asnType,omitempty"`
	// LocalASN is what the node calls itself in this session; unset is its own ASN.
	LocalASN int64 `json:"localASN,omitempty"`
	// Port is the peer's TCP port; unset is 179.
	Port int32 `json:"port,omitempty"`
	// SourceAddress is the node's end of the session; unset leaves it to the kernel.
	SourceAddress string `json:"sourceAddress,omitempty"`
	// PasswordSecret has the key of TCP MD5.
	PasswordSecret *SecretKey `json:"passwordSecret,omitempty"`
	// TTLSecurity is how many hops away the peer is at most (GTSM).
	TTLSecurity int32 `json:"ttlSecurity,omitempty"`
	// EBGPMultiHop is the TTL of packets to a peer of another ASN that is not on the node's segment.
	EBGPMultiHop int32 `json:"ebgpMultiHop,omitempty"`
	BGPTimers    `json:",inline"`
	// Passive waits for the peer to connect.
	Passive bool `json:"passive,omitempty"`
	// GracefulRestart is that of this peer; unset is that of the BGPConfiguration.
	GracefulRestart *GracefulRestart `json:"gracefulRestart,omitempty"`
	// Families are IPv4 and IPv6; empty is both.
	Families []string `json:"families,omitempty"`
	// AddPath exchanges several paths of a prefix.
	AddPath bool      `json:"addPath,omitempty"`
	Import  BGPImport `json:"import,omitzero"`
}

// SecretKey names a value of a Secret in the namespace wayleave-peers.
type SecretKey struct {
	Name string `json:"name"`
	// Key is the key in the Secret; unset is "password".
	Key string `json:"key,omitempty"`
}

// BGPTimers are durations of a session.
type BGPTimers struct {
	// HoldTime is how long a silent peer is believed to be alive, at least 3s.
	HoldTime *metav1.Duration `json:"holdTime,omitempty"`
	// KeepaliveTime is the interval of keepalives, at most a third of HoldTime.
	KeepaliveTime *metav1.Duration `json:"keepaliveTime,omitempty"`
	// ConnectTime is the interval of attempts to connect.
	ConnectTime *metav1.Duration `json:"connectTime,omitempty"`
}

// GracefulRestart is how long a peer keeps routes of a node whose BGP process is gone.
type GracefulRestart struct {
	// Enabled asks for it; unset is true.
	Enabled *bool `json:"enabled,omitempty"`
	// RestartTime is at most 4095s.
	RestartTime *metav1.Duration `json:"restartTime,omitempty"`
	// LongLivedTime is how much longer the routes stay as a last choice; unset is not at all.
	LongLivedTime *metav1.Duration `json:"longLivedTime,omitempty"`
}

// BGPImport selects the routes of a peer that a node accepts beside those to other nodes' pods. They are used with the
// setting `routing: bgp`.
type BGPImport struct {
	// Networks are CIDRs that contain the accepted routes.
	Networks []string `json:"networks,omitempty"`
	// DefaultRoute accepts a default route.
	DefaultRoute bool `json:"defaultRoute,omitempty"`
	// MaxPrefixes is how many routes the peer may send per family before the session ends; unset is 10000.
	MaxPrefixes int32 `json:"maxPrefixes,omitempty"`
}

// BGPPeerStatus is the observed state.
type BGPPeerStatus struct {
	// Nodes is how many nodes the peer is for.
	Nodes int32 `json:"nodes"`
	// Conditions has one of type Accepted; its reasons are Accepted, Invalid and NoNodes.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BGPConfiguration is what all nodes have in common. Only the object with the name "default" counts.
type BGPConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              BGPConfigurationSpec   `json:"spec"`
	Status            BGPConfigurationStatus `json:"status,omitempty"`
}

// BGPConfigurationSpec is the desired state.
type BGPConfigurationSpec struct {
	// ASN is that of nodes without one of their own; unset is 64512. A node's own is its annotation
	// wayleave.dev/bgp-asn, otherwise the first of NodeASNs that selects it.
	ASN      int64     `json:"asn,omitempty"`
	NodeASNs []NodeASN `json:"nodeASNs,omitempty"`
	// ListenPort is where nodes accept sessions; unset is 179.
	ListenPort int32   `json:"listenPort,omitempty"`
	Mesh       BGPMesh `json:"mesh,omitzero"`
	BGPTimers  `json:",inline"`
	// GracefulRestart is that of sessions whose peer does not have its own.
	GracefulRestart *GracefulRestart `json:"gracefulRestart,omitempty"`
}

// NodeASN gives selected nodes an ASN.
type NodeASN struct {
	ASN          int64                 `json:"asn"`
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
}

// BGPMesh is sessions between nodes, with the setting `routing: bgp`.
type BGPMesh struct {
	// Enabled makes sessions between nodes; unset is true.
	Enabled *bool `json:"enabled,omitempty"`
	// RouteReflectorSelector selects nodes that reflect routes: others have sessions only with these.
	RouteReflectorSelector *metav1.LabelSelector `json:"routeReflectorSelector,omitempty"`
	// ClusterID is that of the route reflectors, in the form of an IPv4 address; unset is the router ID of each.
	ClusterID string `json:"clusterID,omitempty"`
	// PasswordSecret has the key of TCP MD5 between nodes.
	PasswordSecret *SecretKey `json:"passwordSecret,omitempty"`
}

// BGPConfigurationStatus is the observed state.
type BGPConfigurationStatus struct {
	// Conditions has one of type Accepted; its reasons are Accepted, Invalid and Unused.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BGPAdvertisement says what nodes announce to BGPPeers.
type BGPAdvertisement struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              BGPAdvertisementSpec   `json:"spec"`
	Status            BGPAdvertisementStatus `json:"status,omitempty"`
}

// BGPAdvertisementSpec is the desired state.
type BGPAdvertisementSpec struct {
	// Addresses are PodCIDR, LoadBalancerIP, ExternalIP and ClusterIP; empty is LoadBalancerIP.
	Addresses []string `json:"addresses,omitempty"`
	// Pools and PoolSelector select AddressPools; without both, all. A pool is announced only if its spec.bgp.enabled
	// is set.
	Pools        []string              `json:"pools,omitempty"`
	PoolSelector *metav1.LabelSelector `json:"poolSelector,omitempty"`
	// ServiceSelector and NamespaceSelector select Services; unset selects all.
	ServiceSelector   *metav1.LabelSelector `json:"serviceSelector,omitempty"`
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// NodeSelector selects the nodes that announce; unset selects all.
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`
	// Peers and PeerSelector select BGPPeers, by name and label; without both, all.
	Peers        []string              `json:"peers,omitempty"`
	PeerSelector *metav1.LabelSelector `json:"peerSelector,omitempty"`
	// AggregationLength and AggregationLengthV6 are prefix lengths of the announced routes to Services; unset are 32
	// and 128.
	AggregationLength   *int32 `json:"aggregationLength,omitempty"`
	AggregationLengthV6 *int32 `json:"aggregationLengthV6,omitempty"`
	// Communities are "ASN:VALUE", numbers or well-known names; LargeCommunities "ASN:VALUE:VALUE".
	Communities      []string `json:"communities,omitempty"`
	LargeCommunities []string `json:"largeCommunities,omitempty"`
	// LocalPreference (at least 1) and MED are attributes of the routes.
	LocalPreference *int64 `json:"localPreference,omitempty"`
	MED             *int64 `json:"med,omitempty"`
}

// BGPAdvertisementStatus is the observed state.
type BGPAdvertisementStatus struct {
	// Conditions has one of type Accepted; its reasons are Accepted, Invalid and Missing.
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Definition is a CustomResourceDefinition.
type Definition struct {
	Kind, Resource string
	YAML           []byte
}

// BGPDefinitions are those of BGP.
func BGPDefinitions() []Definition {
	return []Definition{{BGPPeerKind, BGPPeers, BGPPeerCRD}, {BGPConfigurationKind, BGPConfigurations,
		BGPConfigurationCRD},
		{BGPAdvertisementKind, BGPAdvertisements, BGPAdvertisementCRD}}
}
