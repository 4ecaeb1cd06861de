package manifest

import (
	"fmt"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// metallbLegacyPool is an AddressPool of MetalLB 0.13 (metallb.io/v1alpha1 and v1beta1).
type metallbLegacyPool struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		Protocol          string   `json:"protocol"`
		Addresses         []string `json:"addresses"`
		AutoAssign        *bool    `json:"autoAssign"`
		BGPAdvertisements []any    `json:"bgpAdvertisements"`
	} `json:"spec"`
	Status any `json:"status"`
}

// metallbConfig is the key "config" of the ConfigMap of MetalLB before 0.13.
type metallbConfig struct {
	Peers          []any               `json:"peers"`
	BGPCommunities map[string]string   `json:"bgp-communities"`
	BFDProfiles    []any               `json:"bfd-profiles"`
	AddressPools   []metallbConfigPool `json:"address-pools"`
	Discovery      any                 `json:"peer-autodiscovery"`
}

type metallbConfigPool struct {
	Name              string   `json:"name"`
	Protocol          string   `json:"protocol"`
	Addresses         []string `json:"addresses"`
	AutoAssign        *bool    `json:"auto-assign"`
	AvoidBuggyIPs     bool     `json:"avoid-buggy-ips"`
	BGPAdvertisements []any    `json:"bgp-advertisements"`
}

func (m *metallb) oldPool(doc []byte) error {
	var list []metallbLegacyPool
	if err := one(m, "AddressPool", doc, &list); err != nil {
		return err
	}
	p := list[0]
	m.legacy("AddressPool", "spec.", metallbConfigPool{Name: p.Metadata.Name, Protocol: p.Spec.Protocol,
		Addresses:  p.Spec.Addresses,
		AutoAssign: p.Spec.AutoAssign, BGPAdvertisements: p.Spec.BGPAdvertisements})
	return nil
}

func (m *metallb) configMap(doc []byte) error {
	var in struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Data     map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(doc, &in); err != nil {
		return err
	}
	text, ok := in.Data["config"]
	if !ok {
		return fmt.Errorf("kind: ConfigMap %s has no key config: it is not MetalLB's", in.Metadata.Name)
	}
	var c metallbConfig
	var tree any
	for _, to := range []any{&c, &tree} {
		if err := yaml.Unmarshal([]byte(text), to); err != nil {
			return fmt.Errorf("data.config: not YAML: %w", err)
		}
	}
	const kind, bgp = "ConfigMap", "are not carried over: BGP of before 0.13 is not read; write BGPPeers and " +
		"BGPAdvertisements"
	at := func(f string) string { return "data.config." + f }
	for _, f := range unknown("", tree, reflect.TypeFor[metallbConfig]()) {
		m.lost(kind, in.Metadata.Name, at(f), "is not carried over: unknown")
	}
	for field, there := range map[string]bool{"peers": len(c.Peers) > 0, "bgp-communities": len(c.BGPCommunities) > 0,
		"bfd-profiles": len(c.BFDProfiles) > 0, "peer-autodiscovery": c.Discovery != nil} {
		if there {
			m.lost(kind, in.Metadata.Name, at(field), bgp)
		}
	}
	for i, p := range c.AddressPools {
		m.legacy(kind, at(fmt.Sprintf("address-pools[%d].", i)), p)
	}
	return nil
}

// legacy converts a pool of before 0.13 to an IPAddressPool, announced by its protocol.
func (m *metallb) legacy(kind, field string, p metallbConfigPool) {
	out := metallbPool{quiet: true, Metadata: metav1.ObjectMeta{Name: p.Name},
		Spec: metallbPoolSpec{Addresses: p.Addresses, AutoAssign: p.AutoAssign, AvoidBuggyIPs: p.AvoidBuggyIPs}}
	m.pools = append(m.pools, out)
	switch p.Protocol {
	case "layer2":
		m.l2 = append(m.l2, metallbL2{Metadata: metav1.ObjectMeta{Name: p.Name},
			Spec: metallbL2Spec{IPAddressPools: []string{p.Name}}})
	case "bgp":
		m.lost(kind, p.Name, field+"protocol",
			"is not carried over: write BGPPeers and a BGPAdvertisement and set spec.bgp.enabled; "+
				"spec.l2.enabled is false")
	default:
		m.lost(kind, p.Name, field+"protocol", "%q is not known: spec.l2.enabled is false", p.Protocol)
	}
	if len(p.BGPAdvertisements) > 0 {
		m.lost(kind, p.Name, field+"bgpAdvertisements", "are not carried over: write a BGPAdvertisement")
	}
}
