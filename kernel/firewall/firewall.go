// Package firewall finds foreign chains that drop packets which must pass, and adds accepting rules to them. A rule in
// a chain of ours is not enough, since every chain of a hook must accept a packet.
//
// Invariants:
//   - A chain of others is changed only where it drops a sample whatever its addresses are, and only by rules in front
//     that carry the owner's comment.
//   - A rule that drops single addresses or ports is reported, and stays in force.
package firewall

import (
	"context"
	"errors"
	"net/netip"
	"slices"
)

// Firewall is one kind of firewall of a host, such as nftables. Safe for concurrent use.
type Firewall interface {
	// Admit makes foreign chains accept the packets of a Pass. A chain that drops one of the samples gets our rules in
	// front of its own; all other chains have none of them. A chain that cannot be changed is reported with the rule
	// that drops.
	Admit(ctx context.Context, p Pass) (Found, error)
	// Withdraw removes the owner's rules from foreign chains, and returns the chains that had some.
	Withdraw(ctx context.Context, owner string) (chains []string, err error)
	// Accepting lists foreign chains with rules of the owner.
	Accepting(ctx context.Context, owner string) (chains []string, err error)
	// WatchOthers reports changes by others to chains and rules, until ctx ends.
	WatchOthers(ctx context.Context) (<-chan struct{}, error)
}

// Hook is a place in the network stack where packets enter chains.
type Hook string

// The hooks whose foreign chains are examined: for packets that the node forwards, and for those addressed to it.
const (
	Forward Hook = "forward"
	Input   Hook = "input"
)

// Pass describes packets that the foreign chains of a hook must accept.
type Pass struct {
	// Owner is the feature whose rules these are, such as "pod network". It is in the comment of each rule.
	Owner string
	Hook  Hook
	// Rules accept the packets.
	Rules []Accepted
	// Samples are example packets: a chain that certainly drops one gets the rules. They have only the addresses that
	// the rules name, so that a chain that drops single addresses keeps doing so.
	Samples []Packet
	// Probes are packets with addresses: a rule that drops one is reported, and left unchanged.
	Probes []Packet
}

// Accepted is a rule of ours in a foreign chain. A zero field matches anything.
type Accepted struct {
	// In and Out are beginnings of names of links.
	In, Out string
	Proto   uint8
	Dport   uint16
	Dst     netip.Addr
	// Mark matches packets that have all of these bits in their mark.
	Mark uint32
	// Replies matches replies of connections whose destination was translated.
	Replies bool
}

// CommentPrefix and the owner make the comment of each rule of ours in a foreign chain.
const CommentPrefix = "wayleave: "

// Found is what foreign chains do with packets that must pass. Each list is sorted.
type Found struct {
	// Accepted are the chains that have our rules, because their own rules drop the packets.
	Accepted []string
	// Drops are rules that drop the packets: in chains that cannot be changed, or because of addresses.
	Drops []string
	// Perhaps are rules that drop some of the packets, by ports or addresses.
	Perhaps []string
}

// Merge is both.
func (f Found) Merge(o Found) Found {
	join := func(a, b []string) []string {
		return slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(a), b...))))
	}
	return Found{join(f.Accepted, o.Accepted), join(f.Drops, o.Drops), join(f.Perhaps, o.Perhaps)}
}

// Equal compares two.
func (f Found) Equal(o Found) bool {
	return slices.Equal(f.Accepted, o.Accepted) && slices.Equal(f.Drops, o.Drops) && slices.Equal(f.Perhaps, o.Perhaps)
}

// Judge evaluates the drops of samples and probes. change says that the chain needs our rules; name prints a rule.
func Judge(sampled, probed []Drop, name func(Drop) string) (change bool, found Found) {
	if slices.ContainsFunc(sampled, Drop.sure) {
		return true, Found{}
	}
	named := map[string]bool{}
	for _, d := range probed {
		if d.Sure {
			found.Drops, named[name(d)] = append(found.Drops, name(d)), true
		}
	}
	for _, d := range append(slices.Clone(probed), sampled...) {
		if !d.Sure && !named[name(d)] {
			found.Perhaps = append(found.Perhaps, name(d))
		}
	}
	return false, found.Merge(Found{})
}

// Refused returns the findings for a chain that cannot be changed.
func Refused(sampled []Drop, name func(Drop) string, err error) (found Found) {
	for _, d := range sampled {
		if d.Sure {
			found.Drops = append(found.Drops, name(d)+" (the chain cannot be changed: "+err.Error()+")")
		}
	}
	return found.Merge(Found{})
}

// All combines several firewalls, all of which a packet must pass.
type All []Firewall

var _ Firewall = All(nil)

// Admit implements Firewall.
func (a All) Admit(ctx context.Context, p Pass) (found Found, err error) {
	for _, f := range a {
		one, fail := f.Admit(ctx, p)
		found, err = found.Merge(one), errors.Join(err, fail)
	}
	return found, err
}

// Withdraw implements Firewall.
func (a All) Withdraw(ctx context.Context, owner string) (chains []string, err error) {
	for _, f := range a {
		list, fail := f.Withdraw(ctx, owner)
		chains, err = append(chains, list...), errors.Join(err, fail)
	}
	return chains, err
}

// Accepting implements Firewall.
func (a All) Accepting(ctx context.Context, owner string) (chains []string, err error) {
	for _, f := range a {
		list, fail := f.Accepting(ctx, owner)
		chains, err = append(chains, list...), errors.Join(err, fail)
	}
	return chains, err
}

// WatchOthers implements Firewall.
func (a All) WatchOthers(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	for _, f := range a {
		changed, err := f.WatchOthers(ctx)
		if err != nil {
			return nil, err
		}
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-changed:
				}
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}()
	}
	return out, nil
}
