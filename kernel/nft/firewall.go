package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	vishnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/firewall"
)

var _ firewall.Firewall = (*Kernel)(nil)

func chainName(c *nftables.Chain) string {
	return tableFamily(c.Table.Family) + " " + c.Table.Name + " " + c.Name
}

func tableFamily(f nftables.TableFamily) string {
	return map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyINet: "inet"}[f]
}

// foreignChains are the filter chains of others at these hooks.
func foreignChains(c *nftables.Conn, hooks ...firewall.Hook) (out []*nftables.Chain, err error) {
	numbers := map[firewall.Hook]*nftables.ChainHook{firewall.Forward: nftables.ChainHookForward,
		firewall.Input: nftables.ChainHookInput}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables: chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Hooknum == nil || ch.Type != nftables.ChainTypeFilter || strings.HasPrefix(ch.Table.Name, "wayleave-") ||
			tableFamily(ch.Table.Family) == "" {
			continue
		}
		if slices.ContainsFunc(hooks, func(h firewall.Hook) bool { return *ch.Hooknum == *numbers[h] }) {
			out = append(out, ch)
		}
	}
	return out, nil
}

// ours are the owner's rules of a chain.
func ours(c *nftables.Conn, ch *nftables.Chain, owner string) (rules []*nftables.Rule, err error) {
	all, err := c.GetRules(ch.Table, ch)
	if err != nil {
		return nil, fmt.Errorf("nftables: rules of %s: %w", chainName(ch), err)
	}
	for _, r := range all {
		if text, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok &&
			text == firewall.CommentPrefix+owner {
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// Admit implements firewall.Firewall.
func (k *Kernel) Admit(ctx context.Context, p firewall.Pass) (found firewall.Found, err error) {
	c, err := k.conn(deadline(ctx))
	if err != nil {
		return found, err
	}
	list, err := foreignChains(c, p.Hook)
	if err != nil {
		return found, err
	}
	index, err := k.linkIndexes()
	if err != nil {
		return found, err
	}
	var errs []error
	for _, ch := range list {
		look := &looker{conn: c, chain: ch, pass: p, index: index}
		one, err := look.admit()
		if errors.Is(err, unix.ENOENT) {
			continue // the chain is gone again
		}
		found, errs = found.Merge(one), append(errs, err)
	}
	return found, errors.Join(errs...)
}

// linkIndexes are the numbers of links by name.
func (k *Kernel) linkIndexes() (map[string]uint32, error) {
	at := netns.None()
	if k.netns != 0 {
		at = netns.NsHandle(k.netns)
	}
	h, err := vishnetlink.NewHandleAt(at, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	out := map[string]uint32{}
	for _, l := range links {
		out[l.Attrs().Name] = uint32(l.Attrs().Index)
	}
	return out, nil
}

// looker looks at one foreign chain, and remembers what it read.
type looker struct {
	conn  *nftables.Conn
	chain *nftables.Chain
	pass  firewall.Pass
	index map[string]uint32

	read map[string][]*nftables.Rule
	sets map[string]*nftables.Set
	full map[string][]nftables.SetElement
	err  error
}

func (l *looker) rules(chain string) []*nftables.Rule {
	if rules, ok := l.read[chain]; ok {
		return rules
	}
	rules, err := l.conn.GetRules(l.chain.Table, &nftables.Chain{Name: chain, Table: l.chain.Table})
	if err != nil {
		l.err = errors.Join(l.err, fmt.Errorf("nftables: rules of %s: %w", chainName(l.chain), err))
	}
	if l.read == nil {
		l.read = map[string][]*nftables.Rule{}
	}
	l.read[chain] = rules
	return rules
}

func (l *looker) elements(name string) []nftables.SetElement {
	if list, ok := l.full[name]; ok {
		return list
	}
	if l.sets == nil {
		l.sets, l.full = map[string]*nftables.Set{}, map[string][]nftables.SetElement{}
		sets, err := l.conn.GetSets(l.chain.Table)
		l.err = errors.Join(l.err, err)
		for _, s := range sets {
			l.sets[s.Name] = s
		}
	}
	var list []nftables.SetElement
	if s := l.sets[name]; s != nil {
		var err error
		list, err = l.conn.GetSetElements(s)
		l.err = errors.Join(l.err, err)
	}
	l.full[name] = list
	return list
}

// walk evaluates the chain for packets of the families that it sees.
func (l *looker) walk(packets []firewall.Packet, countOurs bool) (drops []firewall.Drop) {
	policy := l.chain.Policy != nil && *l.chain.Policy == nftables.ChainPolicyDrop
	for _, p := range packets {
		if f := l.chain.Table.Family; f != nftables.TableFamilyINet && p.Is6 != (f == nftables.TableFamilyIPv6) {
			continue
		}
		e := &evaluation{elements: l.elements, index: func(n string) uint32 { return l.index[n] }, packet: p,
			forward: l.pass.Hook == firewall.Forward}
		w := firewall.Walk{Packet: p, CountOurs: countOurs, Rules: func(chain string) (out []firewall.Rule) {
			for _, r := range l.rules(chain) {
				out = append(out, foreignRule{r, e})
			}
			return out
		}}
		drops = append(drops, w.Base(l.chain.Name, policy)...)
	}
	return drops
}

// name is where a rule is, and what it reads like.
func (l *looker) name(d firewall.Drop) string {
	r, ok := d.Rule.(foreignRule)
	if !ok {
		return chainName(l.chain) + ": " + d.Text
	}
	return fmt.Sprintf("%s %s %s handle %d: %s", tableFamily(l.chain.Table.Family), l.chain.Table.Name, r.Chain.Name,
		r.Handle, d.Text)
}

// admit has the chain let the packets through, and says what it does with them.
func (l *looker) admit() (found firewall.Found, err error) {
	drops := l.walk(l.pass.Samples, false)
	change, found := firewall.Judge(drops, l.walk(l.pass.Probes, false), l.name)
	if l.err != nil {
		return found, l.err
	}
	have, err := ours(l.conn, l.chain, l.pass.Owner)
	if err != nil {
		return found, err
	}
	if !change {
		if len(have) > 0 {
			err = l.replace(have, nil)
		}
		return found, err
	}
	want := l.wanted()
	if again, _ := firewall.Judge(l.walk(l.pass.Samples, true), nil, l.name); again || !sameRules(have, want) {
		if err := l.replace(have, want); err != nil {
			return firewall.Refused(drops, l.name, err), nil
		}
	}
	return firewall.Found{Accepted: []string{chainName(l.chain)}}, nil
}

// wanted are our rules, in the order of the chain.
func (l *looker) wanted() (out []*nftables.Rule) {
	for _, a := range l.pass.Rules {
		if a.Dst.IsValid() && l.chain.Table.Family != nftables.TableFamilyINet &&
			a.Dst.Is6() != (l.chain.Table.Family == nftables.TableFamilyIPv6) {
			continue
		}
		out = append(out, &nftables.Rule{Table: l.chain.Table, Chain: l.chain,
			Exprs:    expressions(a, l.chain.Table.Family),
			UserData: userdata.AppendString(nil, userdata.TypeComment, firewall.CommentPrefix+l.pass.Owner)})
	}
	return out
}

func expressions(a firewall.Accepted, f nftables.TableFamily) (out []expr.Any) {
	meta := func(key expr.MetaKey, data []byte) {
		out = append(out, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data})
	}
	payload := func(base expr.PayloadBase, offset uint32, data []byte) {
		out = append(out, &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data})
	}
	bits := func(load expr.Any, mask uint32, op expr.CmpOp, data uint32) {
		out = append(out, load, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, mask), Xor: make([]byte, 4)},
			&expr.Cmp{Op: op, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, data)})
	}
	if a.Mark != 0 {
		bits(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, a.Mark, expr.CmpOpEq, a.Mark)
	}
	if a.Replies {
		bits(&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED,
			expr.CmpOpNeq, 0)
		bits(&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, dnat, expr.CmpOpNeq, 0)
	}
	if a.In != "" {
		meta(expr.MetaKeyIIFNAME, []byte(a.In))
	}
	if a.Out != "" {
		meta(expr.MetaKeyOIFNAME, []byte(a.Out))
	}
	if a.Dst.IsValid() {
		offset, family := uint32(16), byte(unix.NFPROTO_IPV4)
		if a.Dst.Is6() {
			offset, family = 24, unix.NFPROTO_IPV6
		}
		if f == nftables.TableFamilyINet {
			meta(expr.MetaKeyNFPROTO, []byte{family})
		}
		payload(expr.PayloadBaseNetworkHeader, offset, a.Dst.AsSlice())
	}
	if a.Proto != 0 {
		meta(expr.MetaKeyL4PROTO, []byte{a.Proto})
	}
	if a.Dport != 0 {
		payload(expr.PayloadBaseTransportHeader, 2, binary.BigEndian.AppendUint16(nil, a.Dport))
	}
	return append(out, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
}

// sameRules says whether rules of the kernel are those, whatever they have counted.
func sameRules(have, want []*nftables.Rule) bool {
	return slices.EqualFunc(have, want, func(a, b *nftables.Rule) bool {
		return slices.EqualFunc(a.Exprs, b.Exprs, func(x, y expr.Any) bool {
			if _, ok := x.(*expr.Counter); ok {
				_, ok = y.(*expr.Counter)
				return ok
			}
			return reflect.DeepEqual(x, y)
		})
	})
}

// replace removes rules and puts others in front of all.
func (l *looker) replace(old, rules []*nftables.Rule) error {
	for _, r := range old {
		if err := l.conn.DelRule(r); err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
	}
	for _, r := range slices.Backward(rules) {
		l.conn.InsertRule(r)
	}
	if err := l.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: accept in %s: %w", chainName(l.chain), err)
	}
	return nil
}

// Accepting implements firewall.Firewall.
func (k *Kernel) Accepting(ctx context.Context, owner string) ([]string, error) {
	return k.foreign(ctx, owner, nil)
}

// Withdraw implements firewall.Firewall.
func (k *Kernel) Withdraw(ctx context.Context, owner string) ([]string, error) {
	return k.foreign(ctx, owner, func(c *nftables.Conn, r *nftables.Rule) error { return c.DelRule(r) })
}

// foreign lists the foreign chains with rules of an owner, and does something to each.
func (k *Kernel) foreign(ctx context.Context, owner string, do func(*nftables.Conn, *nftables.Rule) error) (
	chains []string, err error) {
	c, err := k.conn(deadline(ctx))
	if err != nil {
		return nil, err
	}
	list, err := foreignChains(c, firewall.Forward, firewall.Input)
	if err != nil {
		return nil, err
	}
	for _, ch := range list {
		rules, err := ours(c, ch, owner)
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

// WatchOthers implements firewall.Firewall.
func (k *Kernel) WatchOthers(ctx context.Context) (<-chan struct{}, error) {
	return k.watch(ctx, func(kind uint16, table string) bool {
		switch kind {
		case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN,
			unix.NFT_MSG_DELTABLE:
			return !strings.HasPrefix(table, "wayleave-")
		}
		return false
	})
}
