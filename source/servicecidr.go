package source

import (
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"

	"wayleave.dev/model"
)

// ServiceCIDR converts a ServiceCIDR. Host bits are masked, so that a range that is
// written oddly still keeps claims out.
func ServiceCIDR(in *networkingv1.ServiceCIDR) (*model.ServiceCIDR, []model.Problem) {
	c := newChecker("ServiceCIDR", &in.ObjectMeta)
	out := &model.ServiceCIDR{Name: in.Name}
	for i, s := range in.Spec.CIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			c.bad(fmt.Sprintf("spec.cidrs[%d]", i), "%q is not a CIDR", s)
			continue
		}
		out.CIDRs = append(out.CIDRs, p.Masked())
	}
	return out, c.problems
}
