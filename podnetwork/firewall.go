package podnetwork

import (
	"context"
	"time"

	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
)

// filterTable is what iptables calls its table in nftables: Docker and ufw make
// their chains by it.
const filterTable = "filter"

// accept has pods accepted by firewalls of the host that drop what is forwarded, as
// Docker and ufw set it up. It looks again when their table changes, and now and then.
func (n *Network) accept(ctx context.Context) error {
	changed, err := n.NFT.Watch(ctx, filterTable)
	if err != nil {
		return err
	}
	for {
		chains, err := n.Firewall.Accept(ctx, []string{call.Prefix, routes.Device})
		if err != nil {
			n.Log.Warn("firewall of the host", "err", err)
		} else if old := n.accepted.Swap(&chains); len(chains) > 0 && (old == nil || len(*old) == 0) {
			n.Log.Info("the host's firewall drops what is forwarded; pods are accepted in it", "chains", chains)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(lookAgain):
		}
	}
}
