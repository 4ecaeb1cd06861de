package manifest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"wayleave.dev/api"
	"wayleave.dev/source"
)

// MetalLB turns MetalLB's objects, as `kubectl get -o yaml` prints them, into AddressPools
// as YAML. notes say, a line each, what cannot be carried over. An error means that the
// input is not YAML or holds something that is not MetalLB's.
//
// The addresses that Services have are in their status, and stay.
func MetalLB(file string, in io.Reader) (out []byte, notes []string, err error) {
	m := &metallb{}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = m.read(doc)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: document %d: %w", file, n, err)
		}
	}
	out, err = m.write()
	return out, m.notes, err
}

// metallb is what was read.
type metallb struct {
	pools []metallbPool
	l2    []metallbL2
	notes []string
}

type metallbPool struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Addresses         []string `json:"addresses"`
		AutoAssign        *bool    `json:"autoAssign"`
		AvoidBuggyIPs     bool     `json:"avoidBuggyIPs"`
		ServiceAllocation *struct {
			Priority           int                    `json:"priority"`
			Namespaces         []string               `json:"namespaces"`
			NamespaceSelectors []metav1.LabelSelector `json:"namespaceSelectors"`
			ServiceSelectors   []metav1.LabelSelector `json:"serviceSelectors"`
		} `json:"serviceAllocation"`
	} `json:"spec"`
}

type metallbL2 struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		IPAddressPools         []string               `json:"ipAddressPools"`
		IPAddressPoolSelectors []metav1.LabelSelector `json:"ipAddressPoolSelectors"`
		NodeSelectors          []metav1.LabelSelector `json:"nodeSelectors"`
		Interfaces             []string               `json:"interfaces"`
		ServiceSelectors       []metav1.LabelSelector `json:"serviceSelectors"`
	} `json:"spec"`
}

func (m *metallb) note(kind, name, field, format string, args ...any) {
	m.notes = append(m.notes, strings.TrimSpace(kind+" "+name)+": "+field+": "+fmt.Sprintf(format, args...))
}

func (m *metallb) read(doc []byte) error {
	var meta struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
		Items           []any             `json:"items"`
	}
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	group, _, _ := strings.Cut(meta.APIVersion, "/")
	switch {
	case meta.APIVersion == "" && meta.Kind == "" && len(bytes.TrimSpace(stripComments(doc))) == 0:
		return nil
	case meta.APIVersion == "v1" && meta.Kind == "List", group == "metallb.io" && strings.HasSuffix(meta.Kind, "List"):
		for i, item := range meta.Items {
			b, err := yaml.Marshal(item)
			if err == nil {
				err = m.read(b)
			}
			if err != nil {
				return fmt.Errorf("items[%d]: %w", i, err)
			}
		}
		return nil
	case group != "metallb.io":
		return fmt.Errorf("kind: %q of apiVersion %q is not MetalLB's", meta.Kind, meta.APIVersion)
	}
	switch meta.Kind {
	case "IPAddressPool":
		return one(doc, &m.pools)
	case "L2Advertisement":
		return one(doc, &m.l2)
	case "BGPPeer", "BGPAdvertisement", "Community", "BFDProfile":
		m.note(meta.Kind, meta.Metadata.Name, "kind", "is not carried over: Wayleave does not announce by BGP")
	case "ServiceL2Status", "ServiceBGPStatus", "ConfigurationState":
		// a report of MetalLB's, nothing to carry
	default:
		m.note(meta.Kind, meta.Metadata.Name, "kind", "is not carried over: it is not known")
	}
	return nil
}

func one[T any](doc []byte, list *[]T) error {
	var o T
	if err := yaml.Unmarshal(doc, &o); err != nil {
		return err
	}
	*list = append(*list, o)
	return nil
}

func (m *metallb) write() ([]byte, error) {
	var b bytes.Buffer
	names := map[string]string{} // → namespace
	for _, p := range m.pools {
		if other, twice := names[p.Metadata.Name]; twice {
			m.note("IPAddressPool", p.Metadata.Namespace+"/"+p.Metadata.Name, "metadata.name", "is not carried over: one of that name is in namespace %s, and AddressPools have no namespace", other)
			continue
		}
		names[p.Metadata.Name] = p.Metadata.Namespace
		out := m.pool(p)
		if _, problems := source.AddressPool(out); len(problems) > 0 {
			for _, q := range problems {
				m.note("IPAddressPool", p.Metadata.Name, q.Field, "%s", q.Reason)
			}
		}
		raw, err := yaml.Marshal(map[string]any{"apiVersion": api.GroupVersion, "kind": api.AddressPoolKind,
			"metadata": map[string]string{"name": out.Name}, "spec": out.Spec})
		if err != nil {
			return nil, fmt.Errorf("AddressPool %s: %w", out.Name, err)
		}
		fmt.Fprintf(&b, "---\n%s", raw)
	}
	if len(m.pools) == 0 {
		m.note("input", "", "kind", "has no IPAddressPool")
	}
	return b.Bytes(), nil
}

func (m *metallb) pool(p metallbPool) *api.AddressPool {
	out := &api.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: p.Metadata.Name}}
	out.Spec.AutoAssign, out.Spec.AvoidBuggyAddresses = p.Spec.AutoAssign, p.Spec.AvoidBuggyIPs
	for i, a := range p.Spec.Addresses {
		out.Spec.Addresses = append(out.Spec.Addresses, m.network(p.Metadata.Name, i, a))
	}
	if alloc := p.Spec.ServiceAllocation; alloc != nil {
		if alloc.Priority != 0 {
			m.note("IPAddressPool", p.Metadata.Name, "spec.serviceAllocation.priority", "is not carried over: pools with selectors come first, then the older ones")
		}
		out.Spec.ServiceSelector = m.first("IPAddressPool", p.Metadata.Name, "spec.serviceAllocation.serviceSelectors", alloc.ServiceSelectors)
		out.Spec.NamespaceSelector = m.namespaces(p.Metadata.Name, alloc.Namespaces, alloc.NamespaceSelectors)
	}
	m.announce(p, out)
	return out
}

// network writes a CIDR without host bits, which MetalLB lets pass.
func (m *metallb) network(pool string, i int, s string) string {
	s = strings.TrimSpace(s)
	if masked, ok := source.MaskedCIDR(s); ok && masked != s {
		m.note("IPAddressPool", pool, fmt.Sprintf("spec.addresses[%d]", i), "%s has host bits set and became %s", s, masked)
		return masked
	}
	return s
}

// first is the only selector of a list, of which MetalLB wants one to match. Of several
// the first is kept: that gives addresses to fewer, never to more.
func (m *metallb) first(kind, name, field string, list []metav1.LabelSelector) *metav1.LabelSelector {
	if len(list) == 0 {
		return nil
	}
	if len(list) > 1 {
		m.note(kind, name, field, "only the first of %d selectors is carried over: one is allowed; write one with matchExpressions, or a pool for each", len(list))
	}
	return &list[0]
}

func (m *metallb) namespaces(pool string, names []string, selectors []metav1.LabelSelector) *metav1.LabelSelector {
	if len(names) == 0 {
		return m.first("IPAddressPool", pool, "spec.serviceAllocation.namespaceSelectors", selectors)
	}
	if len(selectors) > 0 {
		m.note("IPAddressPool", pool, "spec.serviceAllocation.namespaceSelectors", "are not carried over beside namespaces, which are")
	}
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpIn, Values: names}}}
}

// announce takes over what the L2Advertisements say of a pool. A pool without one was not
// announced by L2, and is not.
func (m *metallb) announce(p metallbPool, out *api.AddressPool) {
	var found []metallbL2
	for _, adv := range m.l2 {
		if adv.of(p.Metadata) {
			found = append(found, adv)
		}
	}
	if len(found) == 0 {
		off := false
		out.Spec.L2.Enabled = &off
		m.note("IPAddressPool", p.Metadata.Name, "spec", "no L2Advertisement is for it, so spec.l2.enabled is false")
		return
	}
	if len(found) > 1 {
		m.note("IPAddressPool", p.Metadata.Name, "spec", "only the first of %d L2Advertisements is carried over, %s", len(found), found[0].Metadata.Name)
	}
	adv := found[0]
	out.Spec.L2.Interfaces = adv.Spec.Interfaces
	out.Spec.L2.NodeSelector = m.first("L2Advertisement", adv.Metadata.Name, "spec.nodeSelectors", adv.Spec.NodeSelectors)
	if len(adv.Spec.ServiceSelectors) > 0 {
		m.note("L2Advertisement", adv.Metadata.Name, "spec.serviceSelectors", "are not carried over: all Services of the pool are announced")
	}
}

// of says whether the advertisement is for the pool: by name or label, or as it names none.
func (a metallbL2) of(pool metav1.ObjectMeta) bool {
	if len(a.Spec.IPAddressPools)+len(a.Spec.IPAddressPoolSelectors) == 0 || slices.Contains(a.Spec.IPAddressPools, pool.Name) {
		return true
	}
	return slices.ContainsFunc(a.Spec.IPAddressPoolSelectors, func(s metav1.LabelSelector) bool {
		sel, err := metav1.LabelSelectorAsSelector(&s)
		return err == nil && sel.Matches(labels.Set(pool.Labels))
	})
}
