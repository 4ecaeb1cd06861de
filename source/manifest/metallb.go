package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"wayleave.dev/api"
	"wayleave.dev/source"
)

// Note is a message about an imported object.
type Note struct {
	// Object is "KIND NAME"; Field is a field of it.
	Object, Field, Text string
	// Lost says that the field requests something that Wayleave does not support.
	Lost bool
}

// String reads "KIND NAME: FIELD: TEXT".
func (n Note) String() string { return n.Object + ": " + n.Field + ": " + n.Text }

// MetalLB converts MetalLB's objects, as `kubectl get -o yaml` prints them, to AddressPools and objects of BGP in YAML.
// Its configuration before 0.13, a ConfigMap, is read as well. notes describe each field that these do not have. An
// error means that the input is not YAML; other objects are reported.
//
// Addresses of Services are in their status, and stay.
func MetalLB(file string, in io.Reader) (out []byte, notes []Note, err error) {
	m := &metallb{}
	if err := eachDocument(file, in, m.read); err != nil {
		return nil, nil, err
	}
	out, err = m.write()
	return out, m.notes, err
}

// metallb is the collected input.
type metallb struct {
	pools []metallbPool
	l2    []metallbL2
	peers []metallbPeer
	bgp   []metallbBGP
	// communities are names for values.
	communities []metallbCommunity
	notes       []Note
}

// object is one of ours.
type object struct {
	kind, name string
	spec       any
}

// print writes objects as documents of YAML.
func (o object) print(b *bytes.Buffer) error {
	raw, err := yaml.Marshal(map[string]any{"apiVersion": api.GroupVersion, "kind": o.kind,
		"metadata": map[string]string{"name": o.name}, "spec": o.spec})
	if err != nil {
		return fmt.Errorf("%s %s: %w", o.kind, o.name, err)
	}
	fmt.Fprintf(b, "---\n%s", raw)
	return nil
}

// metallbPool is an IPAddressPool.
type metallbPool struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            metallbPoolSpec   `json:"spec"`
	Status          any               `json:"status"`
	// quiet suppresses the note that no L2Advertisement is for the pool.
	quiet bool
}

type metallbPoolSpec struct {
	Addresses         []string           `json:"addresses"`
	AutoAssign        *bool              `json:"autoAssign"`
	AvoidBuggyIPs     bool               `json:"avoidBuggyIPs"`
	ServiceAllocation *metallbAllocation `json:"serviceAllocation"`
}

type metallbAllocation struct {
	Priority           int                    `json:"priority"`
	Namespaces         []string               `json:"namespaces"`
	NamespaceSelectors []metav1.LabelSelector `json:"namespaceSelectors"`
	ServiceSelectors   []metav1.LabelSelector `json:"serviceSelectors"`
}

// metallbL2 is an L2Advertisement.
type metallbL2 struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            metallbL2Spec     `json:"spec"`
	Status          any               `json:"status"`
}

type metallbL2Spec struct {
	IPAddressPools         []string               `json:"ipAddressPools"`
	IPAddressPoolSelectors []metav1.LabelSelector `json:"ipAddressPoolSelectors"`
	NodeSelectors          []metav1.LabelSelector `json:"nodeSelectors"`
	Interfaces             []string               `json:"interfaces"`
	ServiceSelectors       []metav1.LabelSelector `json:"serviceSelectors"`
	PreferredNodeSelectors []any                  `json:"preferredNodeSelectors"`
}

// note reports what a field became, lost that it was dropped.
func (m *metallb) note(kind, name, field, format string, args ...any) {
	m.notes = append(m.notes, Note{Object: strings.TrimSpace(kind + " " + name), Field: field,
		Text: fmt.Sprintf(format, args...)})
}

func (m *metallb) lost(kind, name, field, format string, args ...any) {
	m.note(kind, name, field, format, args...)
	m.notes[len(m.notes)-1].Lost = true
}

func (m *metallb) read(doc []byte) error {
	var meta struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
		Items           []any             `json:"items"`
	}
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		return notObject(doc, err)
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
	case meta.APIVersion == "v1" && meta.Kind == "ConfigMap":
		return m.configMap(doc)
	case group != "metallb.io":
		if meta.Kind == "" {
			return errors.New("kind: is missing")
		}
		m.lost(meta.Kind, meta.Metadata.Name, "kind", "is not read: apiVersion %q is not MetalLB's", meta.APIVersion)
		return nil
	}
	return m.object(meta.Kind, meta.Metadata.Name, doc)
}

// object reads one of MetalLB's own kinds.
func (m *metallb) object(kind, name string, doc []byte) error {
	switch kind {
	case "IPAddressPool":
		return one(m, kind, doc, &m.pools)
	case "L2Advertisement":
		return one(m, kind, doc, &m.l2)
	case "AddressPool":
		return m.oldPool(doc)
	case "BGPPeer":
		return one(m, kind, doc, &m.peers)
	case "BGPAdvertisement":
		return one(m, kind, doc, &m.bgp)
	case "Community":
		return one(m, kind, doc, &m.communities)
	case "BFDProfile":
		m.lost(kind, name, "kind", "is not carried over: BFD is not supported")
	case "ServiceL2Status", "ServiceBGPStatus", "BGPSessionState", "ConfigurationState":
		// status of MetalLB, nothing to carry over
	default:
		m.lost(kind, name, "kind", "is not carried over: unknown")
	}
	return nil
}

// one reads an object, and reports the fields that its type does not have.
func one[T any](m *metallb, kind string, doc []byte, list *[]T) error {
	var o T
	if err := yaml.Unmarshal(doc, &o); err != nil {
		return err
	}
	var tree map[string]any
	if err := yaml.Unmarshal(doc, &tree); err != nil {
		return err
	}
	meta, _ := tree["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	for _, f := range unknown("", tree, reflect.TypeFor[T]()) {
		m.lost(kind, name, f, "is not carried over: unknown")
	}
	*list = append(*list, o)
	return nil
}

// unknown returns the fields of a tree that the type does not have, by their JSON names.
func unknown(prefix string, v any, t reflect.Type) (out []string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case []any:
		for i, item := range v {
			if t.Kind() == reflect.Slice {
				out = append(out, unknown(fmt.Sprintf("%s[%d]", prefix, i), item, t.Elem())...)
			}
		}
	case map[string]any:
		if t.Kind() != reflect.Struct || t == reflect.TypeFor[metav1.ObjectMeta]() {
			return nil
		}
		known := jsonFields(t)
		for k, sub := range v {
			at := strings.TrimPrefix(prefix+"."+k, ".")
			if f, ok := known[k]; ok {
				out = append(out, unknown(at, sub, f)...)
			} else {
				out = append(out, at)
			}
		}
		slices.Sort(out)
	}
	return out
}

func jsonFields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name != "" && name != "-":
			out[name] = f.Type
		case f.Anonymous:
			for k, v := range jsonFields(f.Type) {
				out[k] = v
			}
		}
	}
	return out
}

func (m *metallb) write() ([]byte, error) {
	var b bytes.Buffer
	names := map[string]string{} // → namespace
	for _, p := range m.pools {
		if other, twice := names[p.Metadata.Name]; twice {
			m.lost("IPAddressPool", p.Metadata.Namespace+"/"+p.Metadata.Name, "metadata.name",
				"is not carried over: one of that name is in namespace %s, and AddressPools have no namespace", other)
			continue
		}
		names[p.Metadata.Name] = p.Metadata.Namespace
		out := m.pool(p)
		if _, problems := source.AddressPool(out); len(problems) > 0 {
			for _, q := range problems {
				m.lost("IPAddressPool", p.Metadata.Name, q.Field, "%s", q.Reason)
			}
		}
		if err := (object{api.AddressPoolKind, out.Name, out.Spec}).print(&b); err != nil {
			return nil, err
		}
	}
	for _, o := range m.bgpObjects() {
		if err := o.print(&b); err != nil {
			return nil, err
		}
	}
	if len(m.pools) == 0 {
		m.lost("input", "", "kind", "has no IPAddressPool")
	}
	for _, adv := range m.l2 {
		m.unmatched(adv)
	}
	return b.Bytes(), nil
}

// unmatched reports names and selectors of an L2Advertisement that match no pool of the input.
func (m *metallb) unmatched(adv metallbL2) {
	m.missing("L2Advertisement", adv.Metadata.Name, adv.Spec.IPAddressPools, adv.Spec.IPAddressPoolSelectors)
}

func (m *metallb) missing(kind, of string, names []string, selectors []metav1.LabelSelector) {
	for i, name := range names {
		if !slices.ContainsFunc(m.pools, func(p metallbPool) bool { return p.Metadata.Name == name }) {
			m.note(kind, of, fmt.Sprintf("spec.ipAddressPools[%d]", i),
				"there is no IPAddressPool %s in the input", name)
		}
	}
	for i, s := range selectors {
		if _, err := metav1.LabelSelectorAsSelector(&s); err != nil {
			m.lost(kind, of, fmt.Sprintf("spec.ipAddressPoolSelectors[%d]", i), "cannot be read: %v", err)
		}
	}
}

func (m *metallb) pool(p metallbPool) *api.AddressPool {
	out := &api.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: p.Metadata.Name}}
	out.Spec.AutoAssign, out.Spec.AvoidBuggyAddresses = p.Spec.AutoAssign, p.Spec.AvoidBuggyIPs
	for i, a := range p.Spec.Addresses {
		out.Spec.Addresses = append(out.Spec.Addresses, m.network(p.Metadata.Name, i, a))
	}
	if alloc := p.Spec.ServiceAllocation; alloc != nil {
		if alloc.Priority != 0 {
			m.lost("IPAddressPool", p.Metadata.Name, "spec.serviceAllocation.priority",
				"is not carried over: pools with selectors come first, then older pools")
		}
		out.Spec.ServiceSelector = m.anyOf("IPAddressPool", p.Metadata.Name, "spec.serviceAllocation.serviceSelectors",
			alloc.ServiceSelectors)
		if len(alloc.Namespaces)+len(alloc.NamespaceSelectors)+len(alloc.ServiceSelectors) == 0 {
			m.note("IPAddressPool", p.Metadata.Name, "spec.serviceAllocation",
				"selects no Service, so MetalLB assigns the pool only if it is requested: spec.autoAssign is false")
			out.Spec.AutoAssign = new(bool)
		}
		out.Spec.NamespaceSelector = m.namespaces(p.Metadata.Name, alloc.Namespaces, alloc.NamespaceSelectors)
	}
	m.announce(p, out)
	out.Spec.BGP.Enabled = slices.ContainsFunc(m.bgp, func(a metallbBGP) bool { return a.of(p.Metadata) })
	return out
}

// network writes a CIDR without host bits, which MetalLB accepts.
func (m *metallb) network(pool string, i int, s string) string {
	s = strings.TrimSpace(s)
	if masked, ok := source.MaskedCIDR(s); ok && masked != s {
		m.note("IPAddressPool", pool, fmt.Sprintf("spec.addresses[%d]", i),
			"%s has host bits set and became %s", s, masked)
		return masked
	}
	return s
}

// anyOf returns one selector for a list of which MetalLB requires one to match. If no selector is equivalent, the
// first is kept: that gives addresses to fewer Services, never to more.
func (m *metallb) anyOf(kind, name, field string, list []metav1.LabelSelector) *metav1.LabelSelector {
	if len(list) == 0 {
		return nil
	}
	if u, ok := union(list); ok {
		return u
	}
	m.lost(kind, name, field, "only the first of %d selectors is carried over: a pool has one, and no selector "+
		"equals all of them; write a pool for each", len(list))
	return &list[0]
}

// namespaces combines names and selectors of namespaces.
func (m *metallb) namespaces(pool string, names []string, selectors []metav1.LabelSelector) *metav1.LabelSelector {
	list := selectors
	if len(names) > 0 {
		list = append([]metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpIn, Values: names}}}}, selectors...)
	}
	return m.anyOf("IPAddressPool", pool, "spec.serviceAllocation.namespaceSelectors", list)
}

// announce applies the L2Advertisements of a pool. A pool without one was not announced by L2, and still is not.
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
		if !p.quiet {
			m.note("IPAddressPool", p.Metadata.Name, "spec",
				"no L2Advertisement is for it, so spec.l2.enabled is false")
		}
		return
	}
	for _, adv := range found {
		if len(adv.Spec.ServiceSelectors) > 0 {
			m.lost("L2Advertisement", adv.Metadata.Name, "spec.serviceSelectors",
				"are not carried over: all Services of the pool are announced")
		}
		if len(adv.Spec.PreferredNodeSelectors) > 0 {
			m.lost("L2Advertisement", adv.Metadata.Name, "spec.preferredNodeSelectors",
				"are not carried over: each eligible node may be drawn")
		}
	}
	a := m.join(p.Metadata.Name, found)
	out.Spec.L2.Interfaces = a.Spec.Interfaces
	out.Spec.L2.NodeSelector = m.anyOf("L2Advertisement", a.Metadata.Name, "spec.nodeSelectors", a.Spec.NodeSelectors)
	if len(a.Spec.Interfaces) == 0 {
		m.note("L2Advertisement", a.Metadata.Name, "spec.interfaces", "are empty: pool %s is announced on the "+
			"interfaces that have an InternalIP of the node; name others in spec.l2.interfaces", p.Metadata.Name)
	}
}

// join combines several advertisements of a pool; MetalLB announces each. One is equivalent if they differ only in
// nodes or only in interfaces.
func (m *metallb) join(pool string, list []metallbL2) metallbL2 {
	out := list[0]
	for _, adv := range list[1:] {
		a, b := out.Spec, adv.Spec
		switch {
		case sameSet(a.Interfaces, b.Interfaces):
			if len(a.NodeSelectors) == 0 || len(b.NodeSelectors) == 0 {
				out.Spec.NodeSelectors = nil
			} else if all := append(slices.Clone(a.NodeSelectors), b.NodeSelectors...); joins(all) ||
				reflect.DeepEqual(a.NodeSelectors, b.NodeSelectors) {
				out.Spec.NodeSelectors = compact(all)
			} else {
				m.apart(pool, out, adv)
			}
		case reflect.DeepEqual(a.NodeSelectors, b.NodeSelectors) || len(a.NodeSelectors)+len(b.NodeSelectors) == 0:
			if len(a.Interfaces) == 0 || len(b.Interfaces) == 0 {
				out.Spec.Interfaces = nil
			} else {
				both := append(slices.Clone(a.Interfaces), b.Interfaces...)
				slices.Sort(both)
				out.Spec.Interfaces = slices.Compact(both)
			}
		default:
			m.apart(pool, out, adv)
		}
	}
	return out
}

func (m *metallb) apart(pool string, kept, adv metallbL2) {
	m.lost("L2Advertisement", adv.Metadata.Name, "spec", "is not carried over for pool %s beside %s: one pool has "+
		"one set of nodes and one of interfaces; write a pool for each", pool, kept.Metadata.Name)
}

func joins(list []metav1.LabelSelector) bool {
	_, ok := union(list)
	return ok
}

func compact(list []metav1.LabelSelector) (out []metav1.LabelSelector) {
	for _, s := range list {
		if !slices.ContainsFunc(out, func(o metav1.LabelSelector) bool { return reflect.DeepEqual(o, s) }) {
			out = append(out, s)
		}
	}
	return out
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Compact(slices.Sorted(slices.Values(a))),
		slices.Compact(slices.Sorted(slices.Values(b))))
}

// union returns a selector that matches what any of the list matches. It exists if all are equal, one is empty, or
// all select values of one label.
func union(list []metav1.LabelSelector) (*metav1.LabelSelector, bool) {
	list = compact(list)
	if len(list) == 1 {
		return &list[0], true
	}
	key := ""
	var values []string
	for i := range list {
		k, v, ok := valuesOf(list[i])
		switch {
		case len(list[i].MatchLabels)+len(list[i].MatchExpressions) == 0:
			return &metav1.LabelSelector{}, true
		case !ok || key != "" && k != key:
			key = "/" // not a valid label key
		default:
			key, values = k, append(values, v...)
		}
	}
	if key == "/" || key == "" {
		return nil, false
	}
	slices.Sort(values)
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: key, Operator: metav1.LabelSelectorOpIn, Values: slices.Compact(values)}}}, true
}

// valuesOf returns the label that a selector requires and its values, if it requires nothing else.
func valuesOf(s metav1.LabelSelector) (key string, values []string, ok bool) {
	if len(s.MatchLabels)+len(s.MatchExpressions) != 1 {
		return "", nil, false
	}
	for k, v := range s.MatchLabels {
		return k, []string{v}, true
	}
	e := s.MatchExpressions[0]
	return e.Key, e.Values, e.Operator == metav1.LabelSelectorOpIn && len(e.Values) > 0
}

// of reports whether the advertisement is for the pool: by name or label, or because it names none.
func (a metallbL2) of(pool metav1.ObjectMeta) bool {
	return forPool(pool, a.Spec.IPAddressPools, a.Spec.IPAddressPoolSelectors)
}
