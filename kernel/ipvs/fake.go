package ipvs

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// Fake is a Conn in memory with faults on demand. As the kernel does, it refuses backends of missing servers.
type Fake struct {
	mu       sync.Mutex
	servers  map[Key]Server
	backends map[Key]map[netip.AddrPort]int
	links    map[string]map[netip.Addr]bool
	// Own are addresses of the node on other links.
	Own []netip.Addr
	// Fail, if set, is asked before every server that is set.
	Fail func(Server) error
	// Sets counts the calls that set something.
	Sets int
}

var _ Conn = (*Fake)(nil)

// NewFake makes an empty one.
func NewFake(own ...netip.Addr) *Fake {
	return &Fake{servers: map[Key]Server{}, backends: map[Key]map[netip.AddrPort]int{},
		links: map[string]map[netip.Addr]bool{}, Own: own}
}

// Servers implements Conn.
func (f *Fake) Servers(context.Context) ([]Server, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.servers)), nil
}

// SetServer implements Conn.
func (f *Fake) SetServer(_ context.Context, s Server) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Fail != nil {
		if err := f.Fail(s); err != nil {
			return err
		}
	}
	f.Sets++
	f.servers[s.Key] = s
	if f.backends[s.Key] == nil {
		f.backends[s.Key] = map[netip.AddrPort]int{}
	}
	return nil
}

// DelServer implements Conn.
func (f *Fake) DelServer(_ context.Context, k Key) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.servers, k)
	delete(f.backends, k)
	return nil
}

// Backends implements Conn.
func (f *Fake) Backends(_ context.Context, k Key) (out []Backend, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for at, w := range f.backends[k] {
		out = append(out, Backend{At: at, Weight: w})
	}
	slices.SortFunc(out, func(a, b Backend) int { return a.At.Compare(b.At) })
	return out, nil
}

// SetBackend implements Conn.
func (f *Fake) SetBackend(_ context.Context, k Key, b Backend) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.backends[k] == nil {
		return fmt.Errorf("fake: no server %s", k)
	}
	f.Sets++
	f.backends[k][b.At] = b.Weight
	return nil
}

// DelBackend implements Conn.
func (f *Fake) DelBackend(_ context.Context, k Key, at netip.AddrPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.backends[k], at)
	return nil
}

// Addresses implements Conn.
func (f *Fake) Addresses(_ context.Context, link string) ([]netip.Addr, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	on, ok := f.links[link]
	return slices.SortedFunc(maps.Keys(on), netip.Addr.Compare), ok, nil
}

// SetAddress implements Conn.
func (f *Fake) SetAddress(_ context.Context, link string, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.links[link] == nil {
		f.links[link] = map[netip.Addr]bool{}
	}
	f.Sets++
	f.links[link][a] = true
	return nil
}

// DelAddress implements Conn.
func (f *Fake) DelAddress(_ context.Context, link string, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.links[link], a)
	return nil
}

// DelLink implements Conn.
func (f *Fake) DelLink(_ context.Context, link string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.links, link)
	return nil
}

// Local implements Conn.
func (f *Fake) Local(context.Context, string) ([]netip.Addr, error) { return f.Own, nil }
