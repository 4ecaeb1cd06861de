package podnetwork

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/firewall"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/podnetwork/wireguard"
)

// firewallOwner is in the comments of our rules in the host's chains.
const firewallOwner = "pod network"

// The host's firewall is looked at as soon as others changed it, and then after firewallEvery, or where looking is slow
// after firewallShare times as long as it took.
const (
	firewallEvery = 200 * time.Millisecond
	firewallShare = 10
)

// accept has pods accepted by firewalls of the host that drop what is forwarded, and outer packets of the tunnel by
// those that drop what the node takes. What they drop all the same is named. It looks again when others change them,
// and now and then.
func (n *Network) accept(ctx context.Context) error {
	changed, err := n.Firewall.WatchOthers(ctx)
	if err != nil {
		return err
	}
	for {
		start := time.Now()
		n.lookAtFirewall(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(firewallEvery, firewallShare*time.Since(start))):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-n.relook:
		case <-time.After(lookAgain):
		}
	}
}

// firewallFound is what the host's firewall does with packets of pods.
type firewallFound struct {
	firewall.Found
	// node are rules that drop what pods send to the node itself.
	node []string
}

func (n *Network) lookAtFirewall(ctx context.Context) {
	passes := n.passes()
	var found firewallFound
	for _, p := range passes {
		one, err := n.Firewall.Admit(ctx, p)
		if err != nil {
			if ctx.Err() == nil {
				n.Log.Warn("firewall of the host", "err", err)
			}
			return // what was found before stays
		}
		if len(p.Rules) == 0 {
			found.node = append(one.Drops, one.Perhaps...)
			continue
		}
		found.Found = found.Merge(one)
	}
	old := n.firewall.Swap(&found)
	if old != nil && old.Found.Equal(found.Found) {
		return
	}
	if len(found.Accepted) > 0 {
		n.Log.Info("the host's firewall drops packets of pods; they are accepted in it", "chains", found.Accepted)
	}
	n.report("podnetwork", "firewall", n.firewallProblems(found.Drops))
}

// maxNamedRules bounds the rules that are named at once.
const maxNamedRules = 10

func (n *Network) firewallProblems(drops []string) (problems []model.Problem) {
	for _, d := range drops[:min(len(drops), maxNamedRules)] {
		problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: n.Node}, Field: "firewall",
			Reason: fmt.Sprintf("the host's rule %q drops packets of pods; let the networks of pods pass in it "+
				"(firewalld: firewall-cmd --permanent --zone=trusted --add-source=CIDR)", d)})
	}
	return problems
}

// passes are what the host's firewall must let through now.
func (n *Network) passes() (out []firewall.Pass) {
	snap := n.Store.Snapshot()
	me, _ := snap.Node(n.Node)
	local := n.links.Load()
	uplink := "uplink"
	if local != nil {
		uplink = local.Uplink.Name
	}
	pod := call.Prefix + "0000000000"
	forward := firewall.Pass{Owner: firewallOwner, Hook: firewall.Forward}
	tunnels := []string{routes.Device}
	if n.Config.Encryption.On() {
		tunnels = append(tunnels, wireguard.Device(0), wireguard.Device(1))
	}
	for _, link := range append([]string{call.Prefix}, tunnels...) {
		forward.Rules = append(forward.Rules, firewall.Accepted{In: link}, firewall.Accepted{Out: link})
	}
	node := firewall.Pass{Owner: firewallOwner + ", probes", Hook: firewall.Input} // it has no rules
	for _, is6 := range []bool{false, true} {
		own, ok := ownAddress(me, is6)
		if me != nil && len(me.PodCIDRs) > 0 && !ok {
			continue // pods have no address of this family
		}
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			ways := [][2]string{{pod, pod}, {pod, uplink}, {uplink, pod}}
			for _, t := range tunnels {
				ways = append(ways, [2]string{pod, t}, [2]string{t, pod})
			}
			for _, way := range ways {
				p := firewall.Packet{In: way[0], Out: way[1], Is6: is6, Proto: proto}
				forward.Samples = append(forward.Samples, p)
				if way[0] == pod {
					p.Src = own
				}
				if way[1] == pod {
					p.Dst = own
				}
				forward.Probes = append(forward.Probes, p)
			}
			if me != nil && me.Primary(is6).IsValid() {
				node.Probes = append(node.Probes, firewall.Packet{In: pod, Is6: is6, Proto: proto, Src: own,
					Dst: me.Primary(is6)})
			}
		}
	}
	out = append(out, forward, node)
	if local != nil && me != nil {
		p := tunnelPass(snap, *local, me)
		if n.Config.Encryption.On() {
			admitEncrypted(&p, n.encryption.ports(), *local, me)
		}
		out = append(out, p)
	}
	return out
}

// admitEncrypted has the node take encrypted packets. That they come from nodes is checked before any firewall of the
// host (see package podnetwork/wireguard).
func admitEncrypted(p *firewall.Pass, ports [wireguard.Devices]uint16, local routes.NodeLinks, me *model.Node) {
	for _, port := range ports {
		p.Rules = append(p.Rules, firewall.Accepted{Proto: unix.IPPROTO_UDP, Dport: port})
		for _, to := range me.InternalIPs {
			one := firewall.Packet{In: local.Uplink.Name, Is6: to.Is6(), Proto: unix.IPPROTO_UDP, Dport: port, Dst: to,
				Untracked: true}
			p.Samples, p.Probes = append(p.Samples, one), append(p.Probes, one)
		}
	}
}

// ownAddress is one that a pod of the node may have.
func ownAddress(me *model.Node, is6 bool) (netip.Addr, bool) {
	if me == nil {
		return netip.Addr{}, false
	}
	for _, p := range me.PodCIDRs {
		if p.Addr().Is6() == is6 {
			return p.Masked().Addr().Next().Next(), true
		}
	}
	return netip.Addr{}, false
}

// tunnelPass has the node take VXLAN packets, where some node is reached so. That they come from nodes is checked
// before any firewall of the host (see table).
func tunnelPass(snap model.Snapshot, local routes.NodeLinks, me *model.Node) firewall.Pass {
	p := firewall.Pass{Owner: firewallOwner, Hook: firewall.Input}
	p.Rules = []firewall.Accepted{{Proto: unix.IPPROTO_UDP, Dport: local.VXLANPort()}}
	for other := range snap.Nodes() {
		if other.Name != me.Name && local.MayTunnel(other) {
			from := routes.Underlay(me)
			p.Samples = []firewall.Packet{{In: local.Uplink.Name, Is6: from.Is6(), Proto: unix.IPPROTO_UDP,
				Dport: local.VXLANPort(), Dst: from, Untracked: true}}
			p.Probes = []firewall.Packet{{In: local.Uplink.Name, Is6: from.Is6(), Proto: unix.IPPROTO_UDP,
				Dport: local.VXLANPort(), Dst: from, Src: routes.Underlay(other), Untracked: true}}
			break
		}
	}
	return p
}

// firewallFacts are lines for status.
func (n *Network) firewallFacts() (facts []string) {
	f := n.firewall.Load()
	if f == nil {
		return nil
	}
	list := func(format string, rules []string) {
		if len(rules) > 0 {
			more := ""
			if len(rules) > maxNamedRules {
				more = fmt.Sprintf(" and %d more", len(rules)-maxNamedRules)
			}
			facts = append(facts, fmt.Sprintf(format,
				strings.Join(slices.Clone(rules[:min(len(rules), maxNamedRules)]), "; ")+more))
		}
	}
	if len(f.Accepted) > 0 {
		facts = append(facts, "the host's firewall drops packets of pods; they are accepted in its chains "+
			strings.Join(f.Accepted, ", "))
	}
	list("packets of pods are dropped by rules of the host: %s", f.Drops)
	list("rules of the host drop some packets of pods, by port or address: %s", f.Perhaps)
	list("what pods send to this node itself is dropped, but for what the host accepts before: %s", f.node)
	return facts
}
