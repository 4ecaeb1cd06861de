package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// Swept is the result of a Sweep.
type Swept = networkpolicy.Swept

// again is the delay of a second sweep: packets that the previous rules accepted may have created their flow only after
// the first.
const again = time.Second

// Run sweeps when the rules may have become stricter, and once more a second later, until ctx ends, whose error it
// returns. done, which may be nil, gets the result of each sweep.
func (m *Mode) Run(ctx context.Context, done func(Swept, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.shrunk:
			timer.Reset(again)
		case <-timer.C:
		}
		swept, err := m.Sweep(ctx)
		if done != nil && ctx.Err() == nil {
			done(swept, err)
		}
	}
}

// Sweep reads connection tracking once, marks the flows of isolated local pods that the
// entries in force forbid, and takes the mark from those that they allow. Of a mark it
// changes the bit CutMark only, and no flow that is right.
func (m *Mode) Sweep(ctx context.Context) (Swept, error) {
	own, err := m.track.Own(ctx)
	if err != nil {
		return Swept{}, fmt.Errorf("network policy: %w", err)
	}
	var wrong []conntrack.Tracked
	cut := 0
	err = m.track.Each(ctx, 0, func(flow conntrack.Tracked) error {
		forbidden := m.forbids(flow, own)
		if forbidden {
			cut++
		}
		if forbidden != (flow.Mark&CutMark != 0) {
			wrong = append(wrong, flow)
		}
		return nil
	})
	if err != nil {
		return Swept{}, fmt.Errorf("network policy: %w", err)
	}
	m.mu.Lock()
	m.cut = cut
	m.mu.Unlock()
	var s Swept
	for _, flow := range wrong {
		if err := m.track.SetMark(ctx, flow, ^flow.Mark, CutMark); err != nil {
			return s, fmt.Errorf("network policy: %w", err)
		}
		if flow.Mark&CutMark == 0 {
			s.Cut++
		} else {
			s.Freed++
		}
	}
	return s, nil
}

// forbids says whether the entries in force forbid a flow, as the rules decide its first
// packet: by where it came from, and where it goes to after translation. own are the
// addresses of the node, which pods always reach, and which always reach its pods, but
// for those of its ingress proxy.
func (m *Mode) forbids(flow conntrack.Tracked, own map[netip.Addr]bool) bool {
	src, dst, proto := flow.Original.Src.Addr(), flow.Reply.Src, model.Protocol(flow.Protocol)
	m.mu.Lock()
	defer m.mu.Unlock()
	entries := m.program.InForce()
	_, proxy := entries[entryKey{Kind: networkpolicy.ProxyEntry, Addr: src}]
	if own[src] && !proxy || flow.Expected {
		return false
	}
	if !isolates(entries, networkpolicy.Egress, src) && !isolates(entries, networkpolicy.Ingress, dst.Addr()) {
		return false
	}
	called := flow.Original.Dst
	if _, dns := entries[entryKey{Kind: networkpolicy.DNSEntry, Addr: called.Addr()}]; dns {
		if !networkpolicy.Decide(entries, networkpolicy.Egress, src, called.Addr(), proto, called.Port()) {
			return true
		}
	} else if !own[dst.Addr()] && !networkpolicy.Decide(entries, networkpolicy.Egress, src, dst.Addr(),
		proto, dst.Port()) {
		return true
	}
	return !networkpolicy.Decide(entries, networkpolicy.Ingress, dst.Addr(), src, proto, dst.Port())
}

func isolates(entries map[entryKey]entry, d networkpolicy.Direction, a netip.Addr) bool {
	_, ok := entries[entryKey{Kind: networkpolicy.PodEntry, Direction: d, Addr: a}]
	return ok
}

// release clears the mark of all flows.
func (m *Mode) release(ctx context.Context) error {
	var marked []conntrack.Tracked
	err := m.track.Each(ctx, CutMark, func(flow conntrack.Tracked) error {
		marked = append(marked, flow)
		return nil
	})
	if err != nil {
		return fmt.Errorf("network policy: %w", err)
	}
	for _, flow := range marked {
		if err := m.track.SetMark(ctx, flow, 0, CutMark); err != nil {
			return fmt.Errorf("network policy: %w", err)
		}
	}
	m.cut = 0
	return nil
}
