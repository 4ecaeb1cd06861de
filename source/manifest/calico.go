package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"wayleave.dev/api"
	"wayleave.dev/model"
	"wayleave.dev/source"
)

// calicoSecret is a SecretKeySelector.
type calicoSecret struct {
	SecretKeyRef *api.SecretKey `json:"secretKeyRef"`
}

type calicoPeer struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		Node           string             `json:"node"`
		NodeSelector   string             `json:"nodeSelector"`
		PeerIP         string             `json:"peerIP"`
		PeerSelector   string             `json:"peerSelector"`
		ASNumber       intstr.IntOrString `json:"asNumber"`
		LocalASNumber  intstr.IntOrString `json:"localASNumber"`
		Password       *calicoSecret      `json:"password"`
		MaxRestartTime *metav1.Duration   `json:"maxRestartTime"`
		TTLSecurity    int32              `json:"ttlSecurity"`
		KeepaliveTime  *metav1.Duration   `json:"keepaliveTime"`
		SourceAddress  string             `json:"sourceAddress"`
		// KeepOriginalNextHop is Calico's default, and Wayleave's behavior, if it is false.
		KeepOriginalNextHop bool `json:"keepOriginalNextHop"`
	} `json:"spec"`
	Status any `json:"status"`
}

type calicoConfiguration struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		ASNumber               intstr.IntOrString `json:"asNumber"`
		NodeToNodeMeshEnabled  *bool              `json:"nodeToNodeMeshEnabled"`
		ListenPort             int32              `json:"listenPort"`
		NodeMeshPassword       *calicoSecret      `json:"nodeMeshPassword"`
		NodeMeshMaxRestartTime *metav1.Duration   `json:"nodeMeshMaxRestartTime"`
		ServiceClusterIPs      []calicoBlock      `json:"serviceClusterIPs"`
		ServiceExternalIPs     []calicoBlock      `json:"serviceExternalIPs"`
		ServiceLoadBalancerIPs []calicoBlock      `json:"serviceLoadBalancerIPs"`
		LogSeverityScreen      string             `json:"logSeverityScreen"`
		// Each of these requests nothing if it is empty, or has the value of bindMode's and aggregation's default.
		BindMode                       string `json:"bindMode"`
		Communities                    []any  `json:"communities"`
		PrefixAdvertisements           []any  `json:"prefixAdvertisements"`
		ServiceLoadBalancerAggregation string `json:"serviceLoadBalancerAggregation"`
	} `json:"spec"`
	Status any `json:"status"`
}

type calicoBlock struct {
	CIDR string `json:"cidr"`
}

type calicoPool struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		CIDR         string   `json:"cidr"`
		IPIPMode     string   `json:"ipipMode"`
		VXLANMode    string   `json:"vxlanMode"`
		NATOutgoing  bool     `json:"natOutgoing"`
		Disabled     bool     `json:"disabled"`
		NodeSelector string   `json:"nodeSelector"`
		BlockSize    int      `json:"blockSize"`
		AllowedUses  []string `json:"allowedUses"`
		// DisableBGPExport and AssignmentMode are in every pool that Calico's operator makes.
		DisableBGPExport bool   `json:"disableBGPExport"`
		AssignmentMode   string `json:"assignmentMode"`
	} `json:"spec"`
	Status any `json:"status"`
}

// calico is the collected input. Notes and unknown fields are those of metallb.
type calico struct {
	metallb
	bgpPeers []calicoPeer
	configs  []calicoConfiguration
	ippools  []calicoPool
}

// Calico converts Calico's BGPPeers, BGPConfiguration and IPPools, as `kubectl get -o yaml` and `calicoctl get -o yaml`
// print them, to objects in YAML. notes describe settings to make and each field that has no equal. An error means
// that the input is not YAML; other objects are reported.
func Calico(file string, in io.Reader) (out []byte, notes []Note, err error) {
	c := &calico{}
	if err := eachDocument(file, in, c.read); err != nil {
		return nil, nil, err
	}
	var b bytes.Buffer
	for _, o := range c.objects() {
		if err := o.print(&b); err != nil {
			return nil, nil, err
		}
	}
	return b.Bytes(), c.notes, nil
}

func (c *calico) read(doc []byte) error {
	var meta struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
		Items           []any             `json:"items"`
	}
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		return notObject(doc, err)
	}
	group, _, _ := strings.Cut(meta.APIVersion, "/")
	ours := group == "crd.projectcalico.org" || group == "projectcalico.org"
	switch {
	case meta.APIVersion == "" && meta.Kind == "" && len(bytes.TrimSpace(stripComments(doc))) == 0:
		return nil
	case meta.APIVersion == "v1" && meta.Kind == "List", ours && strings.HasSuffix(meta.Kind, "List"):
		for i, item := range meta.Items {
			b, err := yaml.Marshal(item)
			if err == nil {
				err = c.read(b)
			}
			if err != nil {
				return fmt.Errorf("items[%d]: %w", i, err)
			}
		}
		return nil
	case !ours:
		if meta.Kind == "" {
			return errors.New("kind: is missing")
		}
		c.lost(meta.Kind, meta.Metadata.Name, "kind", "is not read: apiVersion %q is not Calico's", meta.APIVersion)
		return nil
	}
	switch meta.Kind {
	case "BGPPeer":
		return one(&c.metallb, meta.Kind, doc, &c.bgpPeers)
	case "BGPConfiguration":
		return one(&c.metallb, meta.Kind, doc, &c.configs)
	case "IPPool":
		return one(&c.metallb, meta.Kind, doc, &c.ippools)
	}
	c.lost(meta.Kind, meta.Metadata.Name, "kind", "is not carried over")
	return nil
}

// asn reads an ASN, also in dotted notation (RFC 5396).
func (c *calico) asn(kind, name, field string, in intstr.IntOrString) int64 {
	if in.Type == intstr.Int {
		return int64(in.IntVal)
	}
	high, low, dotted := strings.Cut(in.StrVal, ".")
	if !dotted {
		high, low = "0", in.StrVal
		if n, err := strconv.ParseUint(in.StrVal, 10, 32); err == nil {
			return int64(n)
		}
	}
	h, err1 := strconv.ParseUint(high, 10, 16)
	l, err2 := strconv.ParseUint(low, 10, 16)
	if err1 != nil || err2 != nil {
		c.lost(kind, name, field, "is not carried over: %q is not an ASN", in.StrVal)
		return 0
	}
	return int64(h<<16 | l)
}

func (c *calico) secret(kind, name, field string, in *calicoSecret) *api.SecretKey {
	if in == nil || in.SecretKeyRef == nil {
		return nil
	}
	c.note(kind, name, field, "copy the Secret %s to the namespace %s", in.SecretKeyRef.Name, model.PeersNamespace)
	return in.SecretKeyRef
}

// objects returns what the input becomes.
func (c *calico) objects() (out []object) {
	if len(c.bgpPeers)+len(c.configs)+len(c.ippools) == 0 {
		c.lost("input", "", "kind", "has no BGPPeer, BGPConfiguration or IPPool")
		return nil
	}
	spec := &api.BGPConfigurationSpec{}
	adv := api.BGPAdvertisementSpec{Addresses: []string{"PodCIDR"}}
	for i := range c.configs {
		c.configuration(&c.configs[i], spec, &adv)
	}
	var peers []object
	for i := range c.bgpPeers {
		if o, ok := c.peer(&c.bgpPeers[i], spec); ok {
			peers = append(peers, o)
		}
	}
	_, problems := source.BGPConfiguration(&api.BGPConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: model.BGPDefault}, Spec: *spec})
	c.invalid("BGPConfiguration", model.BGPDefault, problems)
	out = append(out, object{api.BGPConfigurationKind, model.BGPDefault, *spec})
	out = append(out, peers...)
	if len(peers) > 0 {
		out = append(out, object{api.BGPAdvertisementKind, "calico", adv})
	}
	for i := range c.ippools {
		if o, ok := c.pool(&c.ippools[i]); ok {
			out = append(out, o)
		}
	}
	if len(c.bgpPeers)+len(c.configs) > 0 {
		c.note("BGPConfiguration", model.BGPDefault, "spec", "needs the settings bgp.enabled: true and, for routes "+
			"between nodes, routing: bgp")
	}
	return out
}

func (c *calico) configuration(in *calicoConfiguration, out *api.BGPConfigurationSpec, adv *api.BGPAdvertisementSpec) {
	const kind = "BGPConfiguration"
	s, name := &in.Spec, in.Metadata.Name
	for _, f := range []struct {
		field string
		asks  bool
	}{{"bindMode", s.BindMode != "" && s.BindMode != "None"}, {"communities", len(s.Communities) > 0},
		{"prefixAdvertisements", len(s.PrefixAdvertisements) > 0}} {
		if f.asks {
			c.lost(kind, name, "spec."+f.field, "is not carried over")
		}
	}
	if name != model.BGPDefault {
		c.lost(kind, name, "metadata.name", "is not carried over: only %q is; a node's ASN is its annotation %s",
			model.BGPDefault, api.ASNAnnotation)
		return
	}
	out.ASN, out.ListenPort = c.asn(kind, name, "spec.asNumber", s.ASNumber), s.ListenPort
	out.Mesh.Enabled = s.NodeToNodeMeshEnabled
	out.Mesh.PasswordSecret = c.secret(kind, name, "spec.nodeMeshPassword", s.NodeMeshPassword)
	if s.NodeMeshMaxRestartTime != nil {
		out.GracefulRestart = &api.GracefulRestart{RestartTime: s.NodeMeshMaxRestartTime}
	}
	for _, part := range []struct {
		field, kind string
		blocks      []calicoBlock
	}{{"serviceClusterIPs", "ClusterIP", s.ServiceClusterIPs}, {"serviceExternalIPs", "ExternalIP",
		s.ServiceExternalIPs},
		{"serviceLoadBalancerIPs", "LoadBalancerIP", s.ServiceLoadBalancerIPs}} {
		if len(part.blocks) == 0 {
			continue
		}
		adv.Addresses = append(adv.Addresses, part.kind)
		c.note(kind, name, "spec."+part.field, "each address of a Service is announced, and not %s as a whole; "+
			"aggregationLength of BGPAdvertisement calico makes larger routes", part.blocks[0].CIDR)
	}
	if len(s.ServiceLoadBalancerIPs) > 0 {
		c.note(kind, name, "spec.serviceLoadBalancerIPs", "set spec.bgp.enabled of the AddressPools")
	}
}

// peer converts a BGPPeer. One whose nodes cannot be selected is not printed: all nodes would be too many.
func (c *calico) peer(in *calicoPeer, conf *api.BGPConfigurationSpec) (object, bool) {
	const kind = "BGPPeer"
	s, name := &in.Spec, in.Metadata.Name
	if s.KeepOriginalNextHop {
		c.lost(kind, name, "spec.keepOriginalNextHop", "is not carried over")
	}
	nodes, err := calicoSelector(s.NodeSelector)
	if err != nil {
		c.lost(kind, name, "spec.nodeSelector", "the peer is not carried over: %v", err)
		return object{}, false
	}
	if s.PeerSelector != "" {
		c.reflectors(name, s.PeerSelector, conf)
		return object{}, false
	}
	if s.Node != "" {
		nodes = &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/hostname": s.Node}}
		c.note(kind, name, "spec.node", "became a selector of the label kubernetes.io/hostname")
	}
	out := api.BGPPeerSpec{NodeSelector: nodes, Address: s.PeerIP, ASN: c.asn(kind, name, "spec.asNumber", s.ASNumber),
		LocalASN: c.asn(kind, name, "spec.localASNumber", s.LocalASNumber), TTLSecurity: s.TTLSecurity,
		PasswordSecret: c.secret(kind, name, "spec.password", s.Password),
		BGPTimers:      api.BGPTimers{KeepaliveTime: s.KeepaliveTime}}
	if host, port, err := net.SplitHostPort(s.PeerIP); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			c.lost(kind, name, "spec.peerIP", "the port is not carried over: %q is none", port)
		}
		out.Address, out.Port = host, int32(n)
	}
	if s.TTLSecurity == 0 {
		out.EBGPMultiHop = maxTTL // Calico's sessions are multihop
	}
	if s.MaxRestartTime != nil {
		out.GracefulRestart = &api.GracefulRestart{RestartTime: s.MaxRestartTime}
	}
	_, problems := source.BGPPeer(&api.BGPPeer{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: out})
	c.invalid(kind, name, problems)
	return object{api.BGPPeerKind, name, out}, true
}

// reflectors converts a peer that is other nodes: they become the route reflectors of the mesh.
func (c *calico) reflectors(name, text string, conf *api.BGPConfigurationSpec) {
	selector, err := calicoSelector(text)
	switch {
	case err != nil:
		c.lost("BGPPeer", name, "spec.peerSelector", "is not carried over: %v", err)
	case selector == nil || conf.Mesh.RouteReflectorSelector != nil:
		c.lost("BGPPeer", name, "spec.peerSelector", "is not carried over: nodes that are peers of other nodes become "+
			"spec.mesh.routeReflectorSelector of BGPConfiguration default, of which there is one")
	default:
		conf.Mesh.RouteReflectorSelector, conf.Mesh.Enabled = selector, nil
		c.note("BGPPeer", name, "spec.peerSelector",
			"became spec.mesh.routeReflectorSelector of BGPConfiguration default")
	}
}

// pool reports what an IPPool is in settings. One for load balancers is an AddressPool.
func (c *calico) pool(in *calicoPool) (object, bool) {
	const kind = "IPPool"
	s, name := &in.Spec, in.Metadata.Name
	if s.Disabled {
		c.note(kind, name, "spec.disabled", "a disabled pool is left out")
		return object{}, false
	}
	if s.DisableBGPExport {
		c.lost(kind, name, "spec.disableBGPExport",
			"is not carried over: with routing: bgp nodes announce their blocks")
	}
	manual := s.AssignmentMode == "Manual"
	if s.AssignmentMode != "" && s.AssignmentMode != "Automatic" && !manual {
		c.lost(kind, name, "spec.assignmentMode", "is not carried over: %q is not known", s.AssignmentMode)
	}
	if slices.Contains(s.AllowedUses, "LoadBalancer") {
		spec := api.AddressPoolSpec{Addresses: []string{s.CIDR}, BGP: api.BGP{Enabled: true}}
		off := false
		spec.L2.Enabled = &off
		if manual {
			spec.AutoAssign = &off
		}
		_, problems := source.AddressPool(&api.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
		c.invalid(kind, name, problems)
		return object{api.AddressPoolKind, name, spec}, true
	}
	if manual {
		c.lost(kind, name, "spec.assignmentMode", "is not carried over: pods choose no pool")
	}
	if s.NodeSelector != "" && s.NodeSelector != "all()" {
		c.lost(kind, name, "spec.nodeSelector",
			"is not carried over: a node's pods have addresses of its spec.podCIDRs")
	}
	routing := "bgp"
	for _, mode := range []string{s.IPIPMode, s.VXLANMode} {
		switch mode {
		case "Always":
			routing = "vxlan"
		case "CrossSubnet":
			routing = "auto"
		}
	}
	c.note(kind, name, "spec", "make the settings routing: %s and podnetwork.masquerade: %t; pods have addresses of "+
		"their node's spec.podCIDRs, so let %s be --cluster-cidr of the kube-controller-manager; a node has one block "+
		"for all of its pods, where Calico adds blocks of size %d", routing, s.NATOutgoing, s.CIDR, s.BlockSize)
	if routing == "vxlan" && s.IPIPMode == "Always" {
		c.note(kind, name, "spec.ipipMode", "IP in IP becomes VXLAN")
	}
	return object{}, false
}
