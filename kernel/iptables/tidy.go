package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wayleave.dev/internal/statefile"
)

// memory records the kernel's base chains of nf_tables that existed before the agent called the programs of iptables,
// by family and table. The programs make chains that are missing, and never remove them.
type memory map[string][]string

func place(f Family, table string) string { return string(f) + " " + table }

// remember records on disk the chains of the tables that a text changes, before it is restored for the first time.
func (k *Kernel) remember(f Family, text []byte) error {
	if k.Memory == "" {
		return nil
	}
	known := k.recall()
	changed := false
	for line := range strings.Lines(string(text)) {
		table, ok := strings.CutPrefix(strings.TrimSpace(line), "*")
		if _, noted := known[place(f, table)]; !ok || noted {
			continue
		}
		chains, err := k.baseChains(f, table)
		if err != nil {
			return err
		}
		names := []string{}
		for _, c := range chains {
			names = append(names, c.Name)
		}
		known[place(f, table)], changed = names, true
	}
	if changed {
		statefile.Keep(k.Memory, known, k.Tell)
	}
	return nil
}

// recall is what was noted. Without it, or where the disk takes nothing, Tidy leaves chains that are the
// kernel's own: what is not known to be ours stays.
func (k *Kernel) recall() memory {
	if m := statefile.Recall[memory](k.Memory, k.Tell, nil); m != nil {
		return m
	}
	return memory{}
}

func nfFamily(f Family) nftables.TableFamily {
	if f == IPv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

// baseChains are those of a table of nf_tables that packets enter from the kernel.
func (k *Kernel) baseChains(f Family, table string) (out []*nftables.Chain, err error) {
	var opts []nftables.ConnOption
	if k.netns != 0 {
		opts = append(opts, nftables.WithNetNSFd(k.netns))
	}
	c, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("iptables: %w", err)
	}
	list, err := c.ListChainsOfTableFamily(nfFamily(f))
	if err != nil {
		return nil, fmt.Errorf("iptables: chains: %w", err)
	}
	for _, ch := range list {
		if ch.Table.Name == table && ch.Hooknum != nil {
			out = append(out, ch)
		}
	}
	return out, nil
}

// Tidy implements Conn. The kernel refuses to remove what is not empty, which is no error.
func (k *Kernel) Tidy(_ context.Context, f Family, table string) error {
	if k.flavour == Legacy || k.Memory == "" {
		return nil
	}
	known := k.recall()
	before, noted := known[place(f, table)]
	if !noted {
		return nil
	}
	chains, err := k.baseChains(f, table)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range chains {
		if !slices.Contains(before, c.Name) && c.Policy != nil && *c.Policy == nftables.ChainPolicyAccept {
			errs = append(errs, k.removeEmpty(f, unix.NFT_MSG_DELCHAIN, text(unix.NFTA_CHAIN_TABLE, table),
				text(unix.NFTA_CHAIN_NAME, c.Name)))
		}
	}
	if len(before) == 0 {
		errs = append(errs, k.removeEmpty(f, unix.NFT_MSG_DELTABLE, text(unix.NFTA_TABLE_NAME, table)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("iptables: remove what is empty of table %s: %w", table, err)
	}
	delete(known, place(f, table))
	statefile.Keep(k.Memory, known, k.Tell)
	return nil
}

func text(kind uint16, s string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(s), 0)}
}

// removeEmpty deletes a chain or a table, unless something is in it. No program and no
// library has that flag.
func (k *Kernel) removeEmpty(f Family, kind uint16, attrs ...netlink.Attribute) error {
	const nonRecursive netlink.HeaderFlags = 0x100 // NLM_F_NONREC
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	raw, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	edge := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	_, err = c.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: edge},
		{Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind),
			Flags: netlink.Request | netlink.Acknowledge | nonRecursive},
			Data: append([]byte{byte(nfFamily(f)), unix.NFNETLINK_V0, 0, 0}, raw...)},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: edge},
	})
	if err != nil {
		return err
	}
	if _, err = c.Receive(); errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
