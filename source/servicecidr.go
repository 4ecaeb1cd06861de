package source

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"

	"wayleave.dev/model"
)

// ServiceCIDR converts a ServiceCIDR.
func ServiceCIDR(in *networkingv1.ServiceCIDR) (*model.ServiceCIDR, []model.Problem) {
	c := newChecker("ServiceCIDR", &in.ObjectMeta)
	out := &model.ServiceCIDR{Name: in.Name}
	for i, s := range in.Spec.CIDRs {
		if p, ok := c.cidr(fmt.Sprintf("spec.cidrs[%d]", i), s); ok {
			out.CIDRs = append(out.CIDRs, p)
		}
	}
	return out, c.problems
}
