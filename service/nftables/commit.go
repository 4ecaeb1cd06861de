package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/conntrack"
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
		for k, err := range d.conflicts {
			if !d.waited[k] {
				failed[k] = err
			}
		}
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
	for k, p := range d.plans {
		delete(m.losers, k)
		delete(m.unsure, k)
		if p == nil {
			delete(m.plans, k)
			delete(m.want, k)
			continue
		}
		m.plans[k], m.want[k] = *p, *d.given[k]
		if d.conflicts[k] != nil {
			m.losers[k] = struct{}{}
		}
	}
	for fe, k := range d.owner {
		if m.owner[fe] = k; k == (model.Name{}) {
			delete(m.owner, fe)
		}
	}
	for a, k := range d.vips {
		if m.vips[a] = k; k == (model.Name{}) {
			delete(m.vips, a)
		}
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
	flows := slices.DeleteFunc(m.flows, func(f conntrack.Flow) bool {
		slots, _ := m.slots(f.Dst)
		return slices.Contains(slots, f.Backend)
	})
	plain := slices.DeleteFunc(m.plain, func(dst netip.AddrPort) bool {
		slots, _ := m.slots(dst)
		return len(slots) == 0 || slices.Contains(slots, dst)
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

// slots are those of a UDP frontend now.
func (m *Mode) slots(dst netip.AddrPort) ([]netip.AddrPort, bool) {
	fe := service.Frontend{Addr: dst.Addr(), Protocol: model.UDP, Port: dst.Port()}
	return m.plans[m.owner[fe]].Slots(fe)
}
