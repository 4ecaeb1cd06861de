package kubernetes

import (
	"context"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"wayleave.dev/model"
	"wayleave.dev/source"
)

// Retry intervals for ServiceCIDRs: if the API server is unreachable, and if it has no such kind or denies access.
const (
	cidrRetry   = time.Second
	cidrRefused = time.Minute
)

// serviceCIDRs watches the ranges of ClusterIPs. If the API server has no such kind, or an older role denies access,
// the node works without: the kind counts as synced, and only ClusterIPs in use are protected from claims.
func (s *Source) serviceCIDRs(ctx context.Context) {
	told := false
	for {
		wait := cidrRetry
		_, err := s.Client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{Limit: 1})
		switch {
		case err == nil:
			rest := s.Client.NetworkingV1().RESTClient()
			s.follow(ctx, reflector(s, rest, "servicecidrs", fields.Everything(), model.ServiceCIDRKind,
				&networkingv1.ServiceCIDR{}, source.ServiceCIDR, (*model.Writer).PutServiceCIDR))
			return
		case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
			if !told {
				s.Log.Warn("cannot read ServiceCIDRs: only ClusterIPs in use are protected from claims of Services",
					"err", err)
			}
			told, wait = true, cidrRefused
			s.Store.MarkSynced(model.ServiceCIDRKind)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
