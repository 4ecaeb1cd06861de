package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ownPorts remembers the netlink ports that this Conn has sent from: the kernel names the port with each change.
type ownPorts struct {
	mu    sync.Mutex
	ports []uint32
}

// remembered is how many ports are kept: events arrive within milliseconds.
const remembered = 256

func newOwnPorts() *ownPorts { return &ownPorts{} }

// note is a socket option that changes nothing but learns the port.
func (o *ownPorts) note(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		name, e := unix.Getsockname(int(fd))
		if nl, ok := name.(*unix.SockaddrNetlink); ok && e == nil {
			o.add(nl.Pid)
		}
		inner = e
	})
	return errors.Join(err, inner)
}

func (o *ownPorts) add(port uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// A port that sends again moves to the end, and is forgotten last.
	o.ports = slices.DeleteFunc(o.ports, func(p uint32) bool { return p == port })
	if len(o.ports) == remembered {
		o.ports = o.ports[1:]
	}
	o.ports = append(o.ports, port)
}

func (o *ownPorts) has(port uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Contains(o.ports, port)
}

// nftablesGroup is NFNLGRP_NFTABLES, where the kernel reports every change.
const nftablesGroup = 7

// Watch implements Conn.
func (k *Kernel) Watch(ctx context.Context, names ...string) (<-chan struct{}, error) {
	return k.watch(ctx, func(_ uint16, table string) bool { return slices.Contains(names, table) })
}

// watch reports changes by others that concerns selects.
func (k *Kernel) watch(ctx context.Context, concerns func(kind uint16, table string) bool) (<-chan struct{}, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns, Groups: 1 << (nftablesGroup - 1)})
	if err != nil {
		return nil, fmt.Errorf("nftables: watch: %w", err)
	}
	if err := bigBuffers(c); err != nil {
		c.Close()
		return nil, fmt.Errorf("nftables: watch: %w", err)
	}
	out := make(chan struct{}, 1)
	poke := func() {
		select {
		case out <- struct{}{}:
		default: // one is waiting already
		}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	go func() {
		defer stop()
		for {
			msgs, err := c.Receive()
			switch {
			case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
				return
			case err != nil: // events were lost, so something may have changed
				poke()
				continue
			}
			for _, m := range msgs {
				if kind, table, ok := changed(m); ok && !k.own.has(m.Header.PID) && concerns(kind, table) {
					poke()
				}
			}
		}
	}()
	return out, nil
}

// changed returns the kind of a message, and the table that it is about. In every message of nf_tables but that of a
// new generation, the attribute 1 is the name of the table.
func changed(m netlink.Message) (kind uint16, table string, ok bool) {
	const header = 4 // struct nfgenmsg
	kind = uint16(m.Header.Type) & 0xff
	if len(m.Data) < header || kind == unix.NFT_MSG_NEWGEN {
		return kind, "", false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return kind, "", false
	}
	for ad.Next() {
		if ad.Type() == 1 {
			return kind, strings.TrimRight(ad.String(), "\x00"), true
		}
	}
	return kind, "", false
}
