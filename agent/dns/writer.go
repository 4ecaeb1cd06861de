package dns

import (
	"context"
	"errors"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

// WriterKinds implements agent.Writer.
func (f *Feature) WriterKinds(config.Config) agent.Kinds { return agent.Kinds{} }

// Write implements agent.Writer: it keeps the Service kube-dns as it should be.
func (f *Feature) Write(c *agent.Cluster) []agent.Part {
	return []agent.Part{{Name: "kube-dns", Run: func(ctx context.Context) error { return keepService(ctx, c) }}}
}

// ensureEvery is how often the Service kube-dns is looked at.
const ensureEvery = 30 * time.Second

func keepService(ctx context.Context, c *agent.Cluster) error {
	k := &keeper{c: c, now: time.Now}
	defer k.tell("")
	for wait := time.Second; ctx.Err() == nil; {
		next, err := k.ensure(ctx)
		if ctx.Err() != nil {
			break
		}
		c.SetCondition("kube-dns", err)
		if err == nil {
			wait = next
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, ensureEvery)
	}
	c.SetCondition("kube-dns", nil)
	return ctx.Err()
}

// ensure returns when to look again.
func (k *keeper) ensure(ctx context.Context) (time.Duration, error) {
	c := k.c
	vips, _ := agent.SplitDNS(c.Config.ClusterDNS)
	want := writeback.DNSService{VIPs: vips, TargetPort: dns.NodePort, Selector: agent.PodSelector()}
	if len(want.VIPs) == 0 {
		if err := c.Store.WaitSynced(ctx, model.ServiceKind); err != nil {
			return 0, err
		}
		told, known, _ := c.Reports.DNS()
		told.VIPs, _ = agent.SplitDNS(told.VIPs) // agents of earlier versions report all
		if _, exists := c.Store.Snapshot().Service(agent.ClusterDNS()); !known && !exists {
			return 0, errors.New(
				"no agent has reported yet which DNS server its kubelet gives to pods (see the setting clusterDNS)")
		}
		want.VIPs = told.VIPs
	}
	if err := addressOwner(c.Store.Snapshot(), want); err != nil {
		return 0, err
	}
	if ok, wait, err := k.mayTake(ctx, want); !ok || err != nil {
		return wait, err
	}
	return ensureEvery, want.Ensure(ctx, c.Client.Interface)
}
