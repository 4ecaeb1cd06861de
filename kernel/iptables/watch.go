package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/namespace"
)

// pollEvery is how often legacy tables are polled, whose changes the kernel does not report.
const pollEvery = 500 * time.Millisecond

// journal remembers which changes were ours.
type journal struct {
	mu sync.Mutex // held while a text is restored
	// own are the generations of nf_tables that our programs made, from and to.
	own [][2]uint32
	// infos are the legacy tables as we left them. missed says that they had changed when we changed them again, before
	// poll saw it.
	infos  map[Family]string
	missed bool
}

// remembered is how many restored texts are kept to recognise their events, which arrive within milliseconds.
const remembered = 64

func (j *journal) note(from, to uint32) {
	if len(j.own) == remembered {
		j.own = j.own[1:]
	}
	j.own = append(j.own, [2]uint32{from, to})
}

func (j *journal) has(gen uint32, program string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !strings.HasPrefix(program, "iptables-") && !strings.HasPrefix(program, "ip6tables-") {
		return false
	}
	for _, r := range j.own {
		if gen-r[0] <= r[1]-r[0] && gen != r[0] {
			return true
		}
	}
	return false
}

// Watch reports changes by others to chains that concerns selects; the chain is
// empty when a whole table went. It ends with ctx.
func (k *Kernel) Watch(ctx context.Context, concerns func(table, chain string) bool) (<-chan struct{}, error) {
	out := make(chan struct{}, 1)
	poke := func() {
		select {
		case out <- struct{}{}:
		default: // one is waiting already
		}
	}
	if k.flavour == Legacy {
		go k.poll(ctx, poke)
		return out, nil
	}
	const group = 7 // NFNLGRP_NFTABLES
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns, Groups: 1 << (group - 1)})
	if err != nil {
		return nil, fmt.Errorf("iptables: watch: %w", err)
	}
	if err := c.SetReadBuffer(8 << 20); err != nil {
		c.Close()
		return nil, fmt.Errorf("iptables: watch: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	go func() {
		defer stop()
		concerned := false
		for {
			msgs, err := c.Receive()
			switch {
			case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
				return
			case err != nil: // events were lost, so something may have changed
				concerned = true
				continue
			}
			for _, m := range msgs {
				e := read(m)
				if e.last {
					if concerned && !k.journal.has(e.gen, e.program) {
						poke()
					}
					concerned = false
					continue
				}
				concerned = concerned || e.table != "" && concerns(e.table, e.chain)
			}
		}
	}()
	return out, nil
}

// event is a message of nf_tables. The last one of a transaction has the generation and the program that made it.
type event struct {
	table, chain string
	last         bool
	gen          uint32
	program      string
}

func read(m netlink.Message) (e event) {
	const header = 4 // struct nfgenmsg
	if len(m.Data) < header || m.Data[0] != unix.AF_INET && m.Data[0] != unix.AF_INET6 && m.Data[0] != 0 {
		return e
	}
	kind := uint16(m.Header.Type) & 0xff
	ad, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return e
	}
	e.last = kind == unix.NFT_MSG_NEWGEN
	text := func() string { return strings.TrimRight(ad.String(), "\x00") }
	for ad.Next() {
		switch {
		case e.last && ad.Type() == unix.NFTA_GEN_ID:
			if b := ad.Bytes(); len(b) == 4 {
				e.gen = binary.BigEndian.Uint32(b)
			}
		case e.last && ad.Type() == unix.NFTA_GEN_PROC_NAME:
			e.program = text()
		case e.last:
		case ad.Type() == 1: // the table, in all messages
			e.table = text()
		case (kind == unix.NFT_MSG_NEWRULE || kind == unix.NFT_MSG_DELRULE) && ad.Type() == unix.NFTA_RULE_CHAIN,
			(kind == unix.NFT_MSG_NEWCHAIN || kind == unix.NFT_MSG_DELCHAIN) && ad.Type() == unix.NFTA_CHAIN_NAME:
			e.chain = text()
		}
	}
	if !e.last && e.chain == "" && kind != unix.NFT_MSG_DELTABLE {
		return event{}
	}
	return e
}

// generation is the number of the last change of nf_tables.
func (k *Kernel) generation() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN),
			Flags: netlink.Request},
		Data: []byte{unix.AF_UNSPEC, 0, 0, 0}})
	if err != nil {
		return 0, err
	}
	for _, m := range msgs {
		if e := read(m); e.last {
			return e.gen, nil
		}
	}
	return 0, errors.New("nf_tables: no generation")
}

// poll compares the legacy tables with how we left them.
func (k *Kernel) poll(ctx context.Context, poke func()) {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if k.changed() {
			poke()
		}
	}
}

// changed says once whether the legacy tables differ from how we left them.
func (k *Kernel) changed() bool {
	k.journal.mu.Lock()
	defer k.journal.mu.Unlock()
	yes := k.journal.missed
	k.journal.missed = false
	for f, was := range k.journal.infos {
		if now := k.info(f); now != was {
			k.journal.infos[f], yes = now, true
		}
	}
	return yes
}

// info is what tells a family's legacy tables from changed ones: how many entries they
// have, and where chains begin.
func (k *Kernel) info(f Family) (all string) {
	for _, table := range []string{"nat", "filter"} {
		if has, err := k.Has(context.Background(), f, table); err != nil || !has {
			continue
		}
		_ = namespace.Do(k.netns, func() error {
			domain, level := unix.AF_INET, unix.SOL_IP
			if f == IPv6 {
				domain, level = unix.AF_INET6, unix.SOL_IPV6
			}
			fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			const getInfo = 64       // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
			var info [32 + 4*13]byte // struct ipt_getinfo
			copy(info[:31], table)
			size := uint32(len(info))
			_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
				uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
			if errno != 0 {
				return errno
			}
			all += string(info[:])
			return nil
		})
	}
	return all
}
