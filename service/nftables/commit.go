package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// manyBad is how many keys may fail before it is taken for a fault of the kernel
// or the node, and not of the keys.
const manyBad = 32

// halve commits the keys in one transaction, and when the kernel refuses it in two,
// and so on. Keys that fail alone are put into failed; any other error is returned
// and means that the state of the kernel is not known.
func (m *Mode) halve(ctx context.Context, keys []model.Name, failed reconcile.KeyErrors[model.Name], draft func([]model.Name) *draft) error {
	if len(keys) == 0 {
		return nil
	}
	d := draft(keys)
	err := m.commit(ctx, d)
	if err == nil {
		maps.Copy(failed, d.Failed())
		return nil
	}
	if fatal(ctx, err) {
		return err
	}
	if len(keys) == 1 {
		if failed[keys[0]] = err; len(failed) >= manyBad {
			return fmt.Errorf("%d services could not be programmed: %w", len(failed), err)
		}
		return nil
	}
	half := len(keys) / 2
	if err := m.halve(ctx, keys[:half], failed, draft); err != nil {
		return err
	}
	return m.halve(ctx, keys[half:], failed, draft)
}

// fatal tells errors that no other choice of keys would avoid: the kernel has not
// what the books say, or could not be asked.
func fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || otherThanRead(err) ||
		errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ETIMEDOUT)
}

// commit sends a draft and enters it into the books.
func (m *Mode) commit(ctx context.Context, d *draft) error {
	if changes := d.changes(); len(changes) > 0 {
		if err := m.conn.CommitAll(ctx, changes...); err != nil {
			return err
		}
	}
	m.accept(d)
	return nil
}

// accept enters a committed draft into the books.
func (m *Mode) accept(d *draft) {
	m.Accept(d.Draft)
	for k := range d.Plans {
		delete(m.unsure, k)
	}
	for a, by := range d.hairpin {
		if m.hairpin[a] += by; m.hairpin[a] == 0 {
			delete(m.hairpin, a)
		}
	}
	for f, names := range d.chains {
		for name := range names {
			m.chains[f][name] = true
		}
	}
	m.flows, m.plain = append(m.flows, d.flows...), append(m.plain, d.plain...)
	m.forget = m.forget || d.forget
}

// finish removes old flows, which comes after the commit so that no packet makes
// them anew, and joins the errors.
func (m *Mode) finish(ctx context.Context, fatal error, failed reconcile.KeyErrors[model.Name]) error {
	if fatal != nil {
		m.synced = false
		return fmt.Errorf("service: %w", fatal)
	}
	if err := m.flush(ctx); err != nil {
		return fmt.Errorf("service: programmed, but UDP clients of former endpoints are not moved: %w", err)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// flush removes the UDP flows to slots that went, and those that went untranslated
// to a frontend which now has slots. What fails is tried again the next time.
func (m *Mode) flush(ctx context.Context) error {
	if err := m.forgetClients(ctx); err != nil {
		return err
	}
	flows := slices.DeleteFunc(m.flows, func(f conntrack.Flow) bool { return m.entry(model.UDP, f.Dst).Serves(f.Backend) })
	plain := slices.DeleteFunc(m.plain, func(dst netip.AddrPort) bool {
		e := m.entry(model.UDP, dst)
		return len(e.Slots)+len(e.Outside) == 0 || e.Serves(dst)
	})
	m.flows, m.plain = flows, plain
	if len(flows)+len(plain) == 0 {
		return nil
	}
	if err := m.track.Flush(ctx, flows, plain); err != nil {
		return err
	}
	m.flows, m.plain = nil, nil
	return nil
}

// entry is that of a frontend now.
func (m *Mode) entry(p model.Protocol, dst netip.AddrPort) service.Entry {
	e, _ := m.Entry(service.Frontend{Addr: dst.Addr(), Protocol: p, Port: dst.Port()})
	return e
}

// forgetClients removes clients from those remembered whose endpoint has gone, or whose
// service has no affinity any more. Packets enter them, so that they are read.
func (m *Mode) forgetClients(ctx context.Context) error {
	if !m.forget || !m.synced {
		return nil
	}
	for _, f := range nft.Families() {
		for _, set := range []string{setClients, setNodeClients} {
			list, err := m.conn.Filled(ctx, m.lay.table(f), set)
			if err != nil {
				return err
			}
			stale := slices.DeleteFunc(list, func(el nft.Element) bool { return m.remembered(f, set == setNodeClients, el) })
			if len(stale) == 0 {
				continue
			}
			if err := m.conn.Forget(ctx, m.lay.table(f), set, stale); err != nil {
				return err
			}
		}
	}
	m.forget = false
	return nil
}

// remembered says whether an element of the clients is right.
func (m *Mode) remembered(f nft.Family, nodePort bool, el nft.Element) bool {
	to := unspecified(f)
	n := to.BitLen() / 8
	key := el.Key
	if len(key) < n+8 || len(el.Data) < n+4 {
		return true
	}
	key = key[n:] // the client
	if !nodePort {
		if len(key) < n+8 {
			return true
		}
		to, _ = netip.AddrFromSlice([]byte(key[:n]))
		key = key[n:]
	}
	backend, _ := netip.AddrFromSlice([]byte(el.Data[:n]))
	e := m.entry(model.Protocol(key[0]), netip.AddrPortFrom(to, binary.BigEndian.Uint16([]byte(key[4:6]))))
	return e.Affinity > 0 && e.Serves(netip.AddrPortFrom(backend, binary.BigEndian.Uint16([]byte(el.Data[n:n+2]))))
}
