package link

import (
	"context"
	"net/netip"
	"slices"
)

// Fake is a Net in memory with faults on demand.
type Fake struct {
	Have    map[Where]Route
	Addr    []netip.Addr
	Tunnels map[string]Tunnel
	Peers   []Peer
	Policy  []Rule
	Spoilt  map[string]bool // links whose checksum offload is off
	Up      Uplink
	// Fail, if set, is asked before every change.
	Fail func(Route) error
}

var _ Net = (*Fake)(nil)

// Routes implements Net.
func (f *Fake) Routes(context.Context) (out []Route, err error) {
	for _, r := range f.Have {
		out = append(out, r)
	}
	return out, nil
}

// SetRoute implements Net.
func (f *Fake) SetRoute(_ context.Context, r Route) error {
	if f.Fail != nil {
		if err := f.Fail(r); err != nil {
			return err
		}
	}
	if f.Have == nil {
		f.Have = map[Where]Route{}
	}
	f.Have[r.Where()] = r
	return nil
}

// DelRoute implements Net.
func (f *Fake) DelRoute(_ context.Context, r Route) error {
	delete(f.Have, r.Where())
	return nil
}

// SetLocal implements Net.
func (f *Fake) SetLocal(_ context.Context, addrs []netip.Addr) error {
	f.Addr = slices.Clone(addrs)
	return nil
}

// Watch implements Net.
func (f *Fake) Watch(context.Context) (<-chan struct{}, error) { return nil, nil }

// Local implements Net.
func (f *Fake) Local(context.Context) ([]netip.Addr, error) { return slices.Clone(f.Addr), nil }

// SetTunnel implements Net.
func (f *Fake) SetTunnel(_ context.Context, t Tunnel) error {
	if f.Tunnels == nil {
		f.Tunnels = map[string]Tunnel{}
	}
	f.Tunnels[t.Name] = t
	return nil
}

// DelTunnel implements Net.
func (f *Fake) DelTunnel(_ context.Context, name string) error {
	delete(f.Tunnels, name)
	return nil
}

// HasTunnel implements Net.
func (f *Fake) HasTunnel(_ context.Context, name string) (bool, error) {
	_, ok := f.Tunnels[name]
	return ok, nil
}

// HasLink implements Net: of links, the fake has tunnels only.
func (f *Fake) HasLink(name string) (bool, error) {
	_, ok := f.Tunnels[name]
	return ok, nil
}

// SetPeers implements Net.
func (f *Fake) SetPeers(_ context.Context, _ string, peers []Peer, prune bool) error {
	if prune {
		f.Peers = slices.Clone(peers)
	}
	return nil
}

// SetRules implements Net.
func (f *Fake) SetRules(_ context.Context, rules []Rule) error {
	f.Policy = slices.Clone(rules)
	return nil
}

// SetChecksumOffload implements Net.
func (f *Fake) SetChecksumOffload(_ context.Context, name string, on bool) error {
	if f.Spoilt == nil {
		f.Spoilt = map[string]bool{}
	}
	f.Spoilt[name] = !on
	return nil
}

// Rules implements Net.
func (f *Fake) Rules(context.Context) ([]Rule, error) { return slices.Clone(f.Policy), nil }

// Uplink implements Net.
func (f *Fake) Uplink(context.Context, []netip.Addr, string) (Uplink, error) { return f.Up, nil }
