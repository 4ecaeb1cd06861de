package dns

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
)

// guestsEvery is the interval at which the list is sent again to one server: the first change is sent at once, later
// ones after this time, plus a second for each 10,000 networks. Pods of the server's own node do not wait for it, see
// Callers.
const guestsEvery = time.Second

// Guests are the clients in no spec.podCIDRs of a Node: pods of another CNI plugin. A pod is known by its status, and
// before that by the networks that this node routes to interfaces of its pods. Methods may be called concurrently.
type Guests struct {
	Feed *Feed
	Log  *slog.Logger

	mu     sync.Mutex
	synced bool
	pods   map[model.Name][]netip.Addr
	local  []netip.Prefix
	full   bool
}

var _ reconcile.Target[model.Name, []netip.Addr] = (*Guests)(nil)

// PlanGuest returns a pod's addresses. Those of pods with the node's network are the node's.
func PlanGuest(snap model.Snapshot, key model.Name) ([]netip.Addr, bool, []model.Problem) {
	p, ok := snap.Pod(key)
	if !ok || p.HostNetwork || len(p.IPs) == 0 {
		return nil, false, nil
	}
	return p.IPs, true, nil
}

// Sync implements reconcile.Target.
func (g *Guests) Sync(_ context.Context, plans map[model.Name][]netip.Addr) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pods, g.synced = maps.Clone(plans), true
	g.tell()
	return nil
}

// Apply implements reconcile.Target.
func (g *Guests) Apply(_ context.Context, set map[model.Name][]netip.Addr, del []model.Name) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.Copy(g.pods, set)
	for _, k := range del {
		delete(g.pods, k)
	}
	g.tell()
	return nil
}

// SetRouted replaces the networks that this node routes to interfaces of its pods.
func (g *Guests) SetRouted(list []netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slices.Equal(g.local, list) {
		return
	}
	g.local = slices.Clone(list)
	g.tell()
}

func (g *Guests) tell() {
	if !g.synced {
		return // a server keeps what it knows
	}
	list := slices.Clone(g.local)
	for _, addrs := range g.pods {
		for _, a := range addrs {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	full := len(list) > schema.MaxGuests
	if full {
		list = list[:schema.MaxGuests] // the node's own come first
	}
	if full && !g.full {
		g.Log.Error("DNS answers no more clients: too many pods have addresses outside of the nodes' podCIDRs",
			"most", schema.MaxGuests)
	}
	g.full = full
	g.Feed.SetGuests(list)
}

// SetGuests replaces the networks of clients that are allowed in addition to those of the settings.
func (f *Feed) SetGuests(list []netip.Prefix) { f.out.Change(func() { f.guests.Set(list) }) }

// guestsTold is the list that one server has, by the revisions of guests and settings, and when it may be sent again.
type guestsTold struct {
	list             []netip.Prefix
	guests, settings uint64
	again            time.Time
}

// strangers returns the guests that the settings do not cover. Guarded by the feed's lock.
func (f *Feed) strangers() []netip.Prefix {
	settings, _ := f.settings.Get()
	guests, _ := f.guests.Get()
	covered := schema.NewClients(settings.Clients)
	out := []netip.Prefix{}
	for _, p := range guests {
		if !covered.Allowed(p.Addr()) || !p.IsSingleIP() {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// nextGuests returns the list if it differs from the server's; nil if it is equal, or has to wait until retry. Guarded
// by the feed's lock.
func (f *Feed) nextGuests(told *guestsTold, now time.Time) (list *[]netip.Prefix, retry time.Duration) {
	guests, settings := f.guests.Revision(), f.settings.Revision()
	if guests == 0 || told.guests == guests && told.settings == settings {
		return nil, 0
	}
	if wait := told.again.Sub(now); wait > 0 {
		return nil, wait
	}
	first := told.guests == 0
	told.guests, told.settings = guests, settings
	fresh := f.strangers()
	if !first && slices.Equal(fresh, told.list) {
		return nil, 0
	}
	told.again = now.Add(guestsEvery + time.Duration(len(fresh)/10_000)*time.Second)
	told.list = fresh
	return &fresh, 0
}
