package service

import (
	"net/netip"
	"slices"

	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// localKinds are those that localOf looks at.
func localKinds(cfg config.Config) model.Kind {
	if cfg.PodNetwork.Enabled {
		return model.NodeKind
	}
	return model.NodeKind | model.PodKind
}

// localOf is what the service proxy must know of this node. Another CNI gives pods addresses that no Node has to
// name: then no client is taken for a stranger, as with kube-proxy without a clusterCIDR, and this node's pods are
// those that the API names.
func localOf(cfg config.Config, snap model.Snapshot, node string) (service.NodeFacts, bool, []model.Problem) {
	l, ok, problems := service.MakeNodeFacts(snap, node)
	if !cfg.PodNetwork.Enabled {
		l.PodCIDRs, l.OwnPodCIDRs = nil, service.PodsOf(snap, node)
	}
	l.NodePortCIDRs = slices.Clone(cfg.Service.NodePortAddresses)
	if cfg.Service.NodePortPrimary && len(l.NodePortCIDRs) > 0 {
		for _, ip := range l.NodeIPs {
			l.NodePortCIDRs = append(l.NodePortCIDRs, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return l, ok, problems
}
