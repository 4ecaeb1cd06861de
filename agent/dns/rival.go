package dns

import (
	"context"
	"fmt"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

const (
	// unusedFor is how long a foreign Service kube-dns must lead to no pod before it is taken over without the setting
	// dns.takeOver: nobody answers then, and a rollout of another server is no reason.
	unusedFor = 15 * time.Second
	// unusedEvery is how often it is looked at meanwhile.
	unusedEvery = 5 * time.Second
)

// keeper keeps the Service kube-dns as it should be. It leaves the Service to another DNS server that has pods.
type keeper struct {
	c *agent.Cluster
	// unused is when the foreign Service was first seen without pods, zero for never.
	unused time.Time
	now    func() time.Time
}

// mayTake says whether the Service kube-dns may be created or changed, or how long to wait until it is looked at
// again.
func (k *keeper) mayTake(ctx context.Context, want writeback.DNSService) (ok bool, wait time.Duration, err error) {
	if k.c.Config.DNS.TakeOver {
		k.tell("")
		return true, 0, nil
	}
	foreign, user, err := want.Foreign(ctx, k.c.Client.Interface)
	switch {
	case err != nil:
		return false, 0, err
	case !foreign:
		k.unused = time.Time{}
		k.tell("")
		return true, 0, nil
	case user != "":
		k.unused = time.Time{}
		k.tell(fmt.Sprintf("it leads to %s, so that server stays the cluster DNS and Wayleave answers no pod; "+
			"to switch over, set dns.takeOver to true (docs/migrate/coredns.md)", user))
		return false, ensureEvery, nil
	}
	if k.unused.IsZero() {
		k.unused = k.now()
	}
	if k.now().Sub(k.unused) < unusedFor {
		return false, unusedEvery, nil
	}
	k.tell("")
	return true, 0, nil
}

// tell reports why the Service is left alone; empty takes it back.
func (k *keeper) tell(reason string) {
	var problems []model.Problem
	if reason != "" {
		problems = []model.Problem{{Kind: "Service", Object: agent.ClusterDNS(), Field: "spec.selector",
			Reason: reason, Note: true, Event: "AnotherDNSServer"}}
	}
	k.c.SetFact("dns", "kube-dns", reason)
	k.c.Problems.Set("dns", "kube-dns", problems)
}

// addressOwner is the Service that has the address of the cluster DNS in place of kube-dns: that of RKE2's CoreDNS has
// another name.
func addressOwner(snap model.Snapshot, want writeback.DNSService) error {
	if _, ok := snap.Service(agent.ClusterDNS()); ok {
		return nil
	}
	for svc := range snap.Services() {
		for _, a := range svc.ClusterIPs {
			for _, vip := range want.VIPs {
				if a == vip {
					return fmt.Errorf("service %s has %s, the address that kubelets give to pods as their DNS "+
						"server, so it stays the cluster DNS; to switch over, delete it (docs/migrate/coredns.md)",
						svc.Name, a)
				}
			}
		}
	}
	return nil
}
