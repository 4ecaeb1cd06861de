package nftables

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// halve commits drafts of the keys, see reconcile.Halve.
func (m *Mode) halve(ctx context.Context, keys []model.Name, failed reconcile.KeyErrors[model.Name],
	draft func([]model.Name) *draft) error {
	return reconcile.Halve(keys, failed, func(part []model.Name) error {
		d := draft(part)
		if err := m.commit(ctx, d); err != nil {
			return err
		}
		maps.Copy(failed, d.Failed())
		return nil
	}, func(err error) bool { return nft.Fatal(ctx, err) })
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
	for at, by := range d.common {
		if m.common[at] += by; m.common[at] == 0 {
			delete(m.common, at)
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
	flows := slices.DeleteFunc(m.flows,
		func(f conntrack.Flow) bool { return m.entry(model.UDP, f.Dst).Serves(f.Backend) })
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
			stale := slices.DeleteFunc(list,
				func(el nft.Element) bool { return m.remembered(f, set == setNodeClients, el) })
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
