package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Firewall is the host's own: chains of others that drop what they do not know. Our
// accepting it elsewhere is not enough, since every chain of a hook must accept.
type Firewall interface {
	// Accept has all foreign chains that forward nothing by default accept what comes
	// from or goes to links whose names begin so. It returns the names of those chains,
	// and changes nothing where that is so already.
	Accept(ctx context.Context, links []string) (chains []string, err error)
	// Withdraw takes our rules out of foreign chains again, and returns where some
	// were.
	Withdraw(ctx context.Context) (chains []string, err error)
	// Accepting lists foreign chains with rules of ours.
	Accepting(ctx context.Context) (chains []string, err error)
}

var _ Firewall = (*Kernel)(nil)

// comment marks our rules in chains of others.
const comment = "wayleave: pod network"

func chainName(c *nftables.Chain) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[c.Table.Family]
	return family + " " + c.Table.Name + " " + c.Name
}

// forwarders are the foreign base chains of the hook forward.
func forwarders(c *nftables.Conn) (out []*nftables.Chain, err error) {
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables: chains: %w", err)
	}
	for _, ch := range chains {
		family := ch.Table.Family
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Type != nftables.ChainTypeFilter || strings.HasPrefix(ch.Table.Name, "wayleave-") {
			continue
		}
		if family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6 || family == nftables.TableFamilyINet {
			out = append(out, ch)
		}
	}
	return out, nil
}

// ours are the rules of a chain that are.
func ours(c *nftables.Conn, ch *nftables.Chain) (rules []*nftables.Rule, err error) {
	all, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return nil, fmt.Errorf("nftables: rules of %s: %w", chainName(ch), err)
	}
	for _, r := range all {
		if text, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && text == comment {
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// Accept implements Firewall.
func (k *Kernel) Accept(ctx context.Context, links []string) (chains []string, err error) {
	c, err := k.conn(deadline(ctx))
	if err != nil {
		return nil, err
	}
	list, err := forwarders(c)
	if err != nil {
		return nil, err
	}
	for _, ch := range list {
		if ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		have, err := ours(c, ch)
		if err != nil {
			return nil, err
		}
		chains = append(chains, chainName(ch))
		if len(have) == 2*len(links) {
			continue
		}
		for _, r := range have {
			if err := c.DelRule(r); err != nil {
				return nil, fmt.Errorf("nftables: %w", err)
			}
		}
		for _, link := range links {
			for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
				c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
					Exprs: []expr.Any{
						&expr.Meta{Key: key, Register: 1},
						&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(link)},
						&expr.Counter{},
						&expr.Verdict{Kind: expr.VerdictAccept}}})
			}
		}
		if err := c.Flush(); err != nil {
			return nil, fmt.Errorf("nftables: accept in %s: %w", chainName(ch), err)
		}
	}
	slices.Sort(chains)
	return chains, nil
}

// Accepting implements Firewall.
func (k *Kernel) Accepting(ctx context.Context) ([]string, error) { return k.foreign(ctx, nil) }

// Withdraw implements Firewall.
func (k *Kernel) Withdraw(ctx context.Context) ([]string, error) {
	return k.foreign(ctx, func(c *nftables.Conn, r *nftables.Rule) error { return c.DelRule(r) })
}

// foreign lists the foreign chains with rules of ours, and does something to each.
func (k *Kernel) foreign(ctx context.Context, do func(*nftables.Conn, *nftables.Rule) error) (chains []string, err error) {
	c, err := k.conn(deadline(ctx))
	if err != nil {
		return nil, err
	}
	list, err := forwarders(c)
	if err != nil {
		return nil, err
	}
	for _, ch := range list {
		rules, err := ours(c, ch)
		if err != nil {
			return nil, err
		}
		if len(rules) == 0 {
			continue
		}
		chains = append(chains, chainName(ch))
		if do == nil {
			continue
		}
		for _, r := range rules {
			if err := do(c, r); err != nil {
				return nil, fmt.Errorf("nftables: %w", err)
			}
		}
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("nftables: %s: %w", chainName(ch), err)
		}
	}
	return chains, nil
}
