package source

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"wayleave.dev/api"
	"wayleave.dev/internal/apiaddr"
	"wayleave.dev/model"
)

// Annotations by which a Service requests an address; Wayleave's own take precedence. MetalLB's and kube-vip's have
// the same meaning, so that objects need no change.
var (
	ipsAnnotations = []string{"wayleave.dev/load-balancer-ips", "metallb.io/loadBalancerIPs",
		"metallb.universe.tf/loadBalancerIPs",
		"kube-vip.io/loadbalancerIPs"}
	poolAnnotations = []string{"wayleave.dev/address-pool", "metallb.io/address-pool",
		"metallb.universe.tf/address-pool"}
	sharingAnnotations = []string{"wayleave.dev/allow-shared-ip", "metallb.io/allow-shared-ip",
		"metallb.universe.tf/allow-shared-ip"}
)

// KeepsAnnotation reports whether a conversion reads the annotation. A source may drop others.
func KeepsAnnotation(key string) bool {
	return slices.Contains(ipsAnnotations, key) || slices.Contains(poolAnnotations, key) ||
		slices.Contains(sharingAnnotations, key) || key == api.ASNAnnotation || key == api.RouterIDAnnotation ||
		key == PreviousSpec || key == classAnnotation || key == defaultClassAnnotation || isIngressOption(key)
}

// balancerFinalizers are finalizers by which other load balancers keep a Service until they have cleaned up: the
// service controller of clouds, and former versions of k3s' ServiceLB.
var balancerFinalizers = []string{"service.kubernetes.io/load-balancer-cleanup",
	"svccontroller.k3s.cattle.io/daemonset"}

// AddressCondition is the type of the condition in a Service's status that describes a problem with its address. It
// is present only while there is one.
const AddressCondition = "wayleave.dev/Address"

// annotation returns the first of the keys that is present, and its field.
func annotation(m *metav1.ObjectMeta, keys []string) (value, field string) {
	for _, k := range keys {
		if v := strings.TrimSpace(m.Annotations[k]); v != "" {
			return v, "metadata.annotations[" + k + "]"
		}
	}
	return "", ""
}

// internLabels copies labels; nil for none. Keys and values repeat across objects.
func internLabels(in map[string]string) map[string]string {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[intern(k)] = intern(v)
	}
	return out
}

// balancer reads what a Service of type LoadBalancer requests and has.
func (c *checker) balancer(in *corev1.Service, out *model.Service) {
	lb := &model.Balancer{
		UID: string(in.UID), Created: in.CreationTimestamp.Time, Version: in.ResourceVersion,
		Leaving: in.DeletionTimestamp != nil,
		Class:   intern(deref(in.Spec.LoadBalancerClass, "")), Labels: internLabels(in.Labels),
		Selector: selectorText(in.Spec.Selector),
	}
	lb.Pool, lb.PoolField = annotation(&in.ObjectMeta, poolAnnotations)
	lb.Pool, lb.PoolField = intern(lb.Pool), intern(lb.PoolField)
	lb.SharingKey, _ = annotation(&in.ObjectMeta, sharingAnnotations)
	c.families(in, out, lb)
	c.requested(in, lb)
	if i := slices.IndexFunc(in.Finalizers, func(f string) bool {
		return slices.Contains(balancerFinalizers,
			f)
	}); i >= 0 {
		lb.Finalizer = intern(in.Finalizers[i])
	}
	for _, g := range in.Status.LoadBalancer.Ingress {
		// external has reported what cannot be parsed.
		if a, err := apiaddr.ParseAddr(g.IP); err == nil && !slices.Contains(lb.Given, a) {
			lb.Given = append(lb.Given, a)
		}
		if g.Hostname != "" {
			lb.GivenNames = append(lb.GivenNames, g.Hostname)
		}
	}
	for _, cond := range in.Status.Conditions {
		if cond.Type == AddressCondition {
			lb.Condition = cond.Reason + ": " + cond.Message
		}
	}
	out.LoadBalancer = lb
}

// families returns the families that the API server has chosen; in a manifest without them, those of the addresses,
// or IPv4.
func (c *checker) families(in *corev1.Service, out *model.Service, lb *model.Balancer) {
	for i, f := range in.Spec.IPFamilies {
		switch f {
		case corev1.IPv4Protocol:
			lb.IPv4 = true
		case corev1.IPv6Protocol:
			lb.IPv6 = true
		default:
			c.bad(fmt.Sprintf("spec.ipFamilies[%d]", i), "%q is not a family; IPv4 and IPv6 are allowed", f)
		}
	}
	if len(in.Spec.IPFamilies) == 0 {
		for _, a := range out.ClusterIPs {
			lb.IPv4, lb.IPv6 = lb.IPv4 || a.Is4(), lb.IPv6 || a.Is6()
		}
	}
	if !lb.IPv4 && !lb.IPv6 {
		lb.IPv4 = true
	}
	switch p := deref(in.Spec.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack); p {
	case corev1.IPFamilyPolicySingleStack:
	case corev1.IPFamilyPolicyPreferDualStack:
		lb.Policy = model.PreferDualStack
	case corev1.IPFamilyPolicyRequireDualStack:
		lb.Policy = model.RequireDualStack
	default:
		c.bad("spec.ipFamilyPolicy", "%q is not a policy; SingleStack, PreferDualStack and RequireDualStack are "+
			"allowed", p)
	}
}

// requested reads the annotation, otherwise spec.loadBalancerIP.
func (c *checker) requested(in *corev1.Service, lb *model.Balancer) {
	text, field := annotation(&in.ObjectMeta, ipsAnnotations)
	if text == "" {
		text, field = in.Spec.LoadBalancerIP, "spec.loadBalancerIP"
	}
	if text == "" {
		return
	}
	lb.RequestedField = intern(field)
	for s := range strings.SplitSeq(text, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		a, ok := c.vip(field, s)
		switch {
		case !ok:
		case a.Is4() && !lb.IPv4, a.Is6() && !lb.IPv6:
			c.bad(field, "%s has a family that spec.ipFamilies does not list", a)
		case slices.ContainsFunc(lb.Requested, func(b netip.Addr) bool { return a.Is4() == b.Is4() }):
			c.bad(field, "%s is a second address of its family; one of each is allowed", a)
		default:
			lb.Requested = append(lb.Requested, a)
		}
	}
}

// selectorText is the canonical form of a selector, for comparison only.
func selectorText(sel map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(sel)) {
		fmt.Fprintf(&b, "%s=%s,", k, sel[k])
	}
	return intern(b.String())
}

// AddressPool converts an AddressPool. Ranges that cannot be parsed are left out. A selector that cannot be parsed
// selects nothing, so that no Service gets an address that is not meant for it.
func AddressPool(in *api.AddressPool) (*model.AddressPool, []model.Problem) {
	c := newChecker(api.AddressPoolKind, &in.ObjectMeta)
	out := &model.AddressPool{
		Name: in.Name, UID: string(in.UID), Created: in.CreationTimestamp.Time, Labels: internLabels(in.Labels),
		AutoAssign: deref(in.Spec.AutoAssign, true), AvoidBuggy: in.Spec.AvoidBuggyAddresses,
		Services:   c.selector("spec.serviceSelector", in.Spec.ServiceSelector),
		Namespaces: c.selector("spec.namespaceSelector", in.Spec.NamespaceSelector),
		L2: model.L2{Enabled: deref(in.Spec.L2.Enabled, true), Nodes: c.selector("spec.l2.nodeSelector",
			in.Spec.L2.NodeSelector)},
		BGP: in.Spec.BGP.Enabled,
	}
	for i, s := range in.Spec.Addresses {
		if r, ok := c.addresses(fmt.Sprintf("spec.addresses[%d]", i), s); ok {
			out.Ranges = append(out.Ranges, r)
		}
	}
	if len(in.Spec.Addresses) == 0 {
		c.bad("spec.addresses", "is empty; CIDRs, ranges FROM-TO and addresses are allowed")
	}
	for i, g := range in.Spec.L2.Interfaces {
		if _, err := path.Match(g, ""); err != nil || g == "" {
			c.bad(fmt.Sprintf("spec.l2.interfaces[%d]", i), "%q is neither the name of an interface nor a "+
				"glob like eth*",
				g)
			continue
		}
		out.L2.Interfaces = append(out.L2.Interfaces, g)
	}
	if len(in.Spec.L2.Interfaces) > 0 && len(out.L2.Interfaces) == 0 {
		out.L2.Enabled = false // none was valid, which must not mean all
	}
	out.Invalid = c.invalid()
	return out, c.problems
}

// addresses parses "192.0.2.0/24", "192.0.2.1-192.0.2.9" or "192.0.2.1".
func (c *checker) addresses(field, s string) (r model.Range, ok bool) {
	switch from, to, isRange := strings.Cut(s, "-"); {
	case isRange:
		r.From, ok = c.addr(field, strings.TrimSpace(from))
		if !ok {
			return r, false
		}
		if r.To, ok = c.addr(field, strings.TrimSpace(to)); !ok {
			return r, false
		}
		if r.From.Is4() != r.To.Is4() {
			c.bad(field, "%q mixes families; both ends must have the same", s)
			return r, false
		}
		if r.To.Less(r.From) {
			c.bad(field, "%q ends before it begins; write %s-%s", s, r.To, r.From)
			return r, false
		}
	case strings.Contains(s, "/"):
		p, err := apiaddr.ParsePrefix(s)
		if err != nil {
			c.bad(field, "%v", err)
			return r, false
		}
		if p != p.Masked() {
			c.bad(field, "%q has host bits set; write %s", s, p.Masked())
			return r, false
		}
		r = model.Range{From: p.Addr(), To: last(p)}
	default:
		if r.From, ok = c.addr(field, s); !ok {
			return r, false
		}
		r.To = r.From
	}
	return r, c.usable(field, s, r)
}

// usable refuses ranges that contain addresses which no Service can have.
func (c *checker) usable(field, s string, r model.Range) bool {
	for _, p := range []struct{ cidr, what string }{
		{"0.0.0.0/8", "unspecified"}, {"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local"},
		{"224.0.0.0/4", "multicast"},
		{"::/127", "unspecified or loopback"}, {"::ffff:0:0/96", "IPv4-mapped"}, {"fe80::/10", "link-local"},
		{"ff00::/8", "multicast"},
	} {
		forbidden := netip.MustParsePrefix(p.cidr)
		if r.From.BitLen() == forbidden.Addr().BitLen() && !last(forbidden).Less(r.From) &&
			!r.To.Less(forbidden.Addr()) {
			c.bad(field, "%q has %s addresses (%s), which no service can have", s, p.what, p.cidr)
			return false
		}
	}
	return true
}

// last returns the highest address of a network.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if bits := p.Bits() - 8*i; bits < 8 {
			b[i] |= 0xff >> max(bits, 0)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

var operators = map[metav1.LabelSelectorOperator]model.Operator{
	metav1.LabelSelectorOpIn: model.In, metav1.LabelSelectorOpNotIn: model.NotIn,
	metav1.LabelSelectorOpExists: model.Exists, metav1.LabelSelectorOpDoesNotExist: model.DoesNotExist,
}

func (c *checker) selector(field string, in *metav1.LabelSelector) (out model.Selector) {
	if in == nil {
		return out
	}
	before := len(c.problems)
	for _, k := range slices.Sorted(maps.Keys(in.MatchLabels)) {
		c.label(field+".matchLabels["+k+"]", k)
		out.Requirements = append(out.Requirements, model.Requirement{Key: k, Values: []string{in.MatchLabels[k]}})
	}
	for i, e := range in.MatchExpressions {
		at := fmt.Sprintf("%s.matchExpressions[%d]", field, i)
		op, ok := operators[e.Operator]
		c.label(at+".key", e.Key)
		switch {
		case !ok:
			c.bad(at+".operator", "%q is not an operator; In, NotIn, Exists and DoesNotExist are allowed", e.Operator)
		case (op == model.In || op == model.NotIn) == (len(e.Values) == 0):
			c.bad(at+".values", "In and NotIn need values, Exists and DoesNotExist have none")
		}
		out.Requirements = append(out.Requirements, model.Requirement{Key: e.Key, Operator: op,
			Values: slices.Clone(e.Values)})
	}
	if len(c.problems) > before {
		return model.Selector{Nothing: true}
	}
	return out
}

func (c *checker) label(field, key string) {
	if len(validation.IsQualifiedName(key)) > 0 {
		c.bad(field, "%q is not a label key", key)
	}
}

// MaskedCIDR returns a CIDR without its host bits; ok is false if s is not a CIDR.
func MaskedCIDR(s string) (string, bool) {
	p, err := apiaddr.ParsePrefix(s)
	if err != nil {
		return "", false
	}
	return p.Masked().String(), true
}
