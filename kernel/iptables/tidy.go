package iptables

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nonRecursive has the kernel refuse to delete what is not empty (NLM_F_NONREC).
const nonRecursive netlink.HeaderFlags = 0x100

// Tidy implements Conn. What somebody else puts there meanwhile has the kernel refuse it
// all, which is no error.
func (k *Kernel) Tidy(ctx context.Context, f Family, table string) error {
	if k.flavour == Legacy {
		return nil
	}
	text, err := k.run(ctx, nil, k.program(f, "save"), "-t", table)
	if err != nil {
		return err
	}
	chains, ok := untouched(text)
	if !ok {
		return nil
	}
	if err := k.remove(f, table, chains); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("iptables: remove the empty table %s: %w", table, err)
	}
	return nil
}

// untouched are the chains of a saved table when it holds nothing but the kernel's, which
// are empty and accept.
func untouched(text []byte) (chains []string, ok bool) {
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, ":"):
			name, policy, _ := strings.Cut(line[1:], " ")
			if !strings.HasPrefix(policy, "ACCEPT") {
				return nil, false
			}
			chains = append(chains, name)
		case strings.HasPrefix(line, "-"):
			return nil, false
		}
	}
	return chains, len(chains) > 0
}

// remove deletes empty chains and their table in one transaction of nf_tables.
func (k *Kernel) remove(f Family, table string, chains []string) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return err
	}
	defer c.Close()
	family := byte(unix.NFPROTO_IPV4)
	if f == IPv6 {
		family = unix.NFPROTO_IPV6
	}
	message := func(kind uint16, flags netlink.HeaderFlags, data []byte, attrs ...netlink.Attribute) (netlink.Message, error) {
		raw, err := netlink.MarshalAttributes(attrs)
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: append(data, raw...)}, err
	}
	const nftables = unix.NFNL_SUBSYS_NFTABLES << 8
	edge := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	head := func() []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }
	name := func(kind uint16, s string) netlink.Attribute {
		return netlink.Attribute{Type: kind, Data: append([]byte(s), 0)}
	}
	var list []netlink.Message
	var errs []error
	add := func(m netlink.Message, err error) { list, errs = append(list, m), append(errs, err) }
	add(message(unix.NFNL_MSG_BATCH_BEGIN, 0, edge))
	for _, chain := range chains {
		add(message(nftables|unix.NFT_MSG_DELCHAIN, netlink.Acknowledge|nonRecursive, head(), name(unix.NFTA_CHAIN_TABLE, table), name(unix.NFTA_CHAIN_NAME, chain)))
	}
	add(message(nftables|unix.NFT_MSG_DELTABLE, netlink.Acknowledge|nonRecursive, head(), name(unix.NFTA_TABLE_NAME, table)))
	add(message(unix.NFNL_MSG_BATCH_END, 0, edge))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.SendMessages(list); err != nil {
		return err
	}
	for range len(chains) + 1 { // an answer to each but the edges
		if _, err := c.Receive(); err != nil {
			return err
		}
	}
	return nil
}
