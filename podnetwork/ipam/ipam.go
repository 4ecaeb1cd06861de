// Package ipam leases addresses of the node's pod networks, and remembers the
// leases through crashes and reboots.
//
// Invariants:
//   - A lease is on disk before its address is given out, and an address is free
//     only once its release is on disk.
//   - No address is leased twice, nor again before its cool-down has passed, unless
//     nothing else is left.
//   - The address of the node's ingress proxy (model.ProxyAddr) is leased to nobody anew.
//   - A file that cannot be read whole is an error that names the line: to go on
//     with an empty book would give out addresses of living pods. Only a torn last
//     line, which a crash leaves, is dropped: its lease was never given out.
package ipam

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/podnetwork/hostport"
)

// Key names who holds a lease, as CNI does: an interface of a container.
type Key struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
}

// Lease is the addresses of one interface.
type Lease struct {
	Key
	// Pod is namespace/name, for people; empty when the runtime does not say.
	Pod string `json:"pod,omitempty"`
	// IPs has at most one address per family.
	IPs []netip.Addr `json:"ips"`
	// HostLink is the name of the interface's other end on the node.
	HostLink string `json:"hostLink,omitempty"`
	// MAC is the pod's, where one was asked for.
	MAC net.HardwareAddr `json:"mac,omitempty"`
	// Ports are ports of the node that are the pod's.
	Ports []hostport.Mapping `json:"ports,omitempty"`
	Since time.Time          `json:"since"`
}

// Wish is what a lease is asked for with.
type Wish struct {
	Pod, HostLink string
	MAC           net.HardwareAddr
	Ports         []hostport.Mapping
	// IPs are addresses asked for, at most one per family; others are chosen.
	IPs []netip.Addr
}

// Taken says that something asked for belongs to another.
type Taken struct {
	What string
	By   Key
	Pod  string
}

// Error names who has it.
func (e Taken) Error() string {
	if e.Pod != "" {
		return fmt.Sprintf("%s is leased to pod %s", e.What, e.Pod)
	}
	return fmt.Sprintf("%s is leased to container %s", e.What, e.By.Container)
}

// record is a line of the journal.
type record struct {
	Add     *Lease    `json:"add,omitempty"`
	Release *Key      `json:"release,omitempty"`
	At      time.Time `json:"at"`
}

// Full says that a pod network has no address left.
type Full struct {
	CIDR   netip.Prefix
	Leased int
}

// Error names the network.
func (e Full) Error() string {
	return fmt.Sprintf("pod network %s is full: %d addresses are leased", e.CIDR, e.Leased)
}

// Book is the leases of a node. Safe for concurrent use.
type Book struct {
	mu       sync.Mutex
	file     *os.File
	path     string
	coolDown time.Duration
	now      func() time.Time
	leases   map[Key]Lease
	used     map[netip.Addr]Key
	freed    map[netip.Addr]time.Time
	next     map[netip.Prefix]netip.Addr
	follow   func([]Lease)
	dead     int // records in the file that no longer count
}

// Open reads the book of a folder, which is made when it is missing. now is the
// clock, nil for the real one.
func Open(dir string, coolDown time.Duration, now func() time.Time) (*Book, error) {
	if now == nil {
		now = time.Now
	}
	b := &Book{path: filepath.Join(dir, "leases"), coolDown: coolDown, now: now, leases: map[Key]Lease{},
		used: map[netip.Addr]Key{}, freed: map[netip.Addr]time.Time{}, next: map[netip.Prefix]netip.Addr{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	if err := b.load(); err != nil {
		return nil, err
	}
	if err := b.compact(); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *Book) load() error {
	raw, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(raw)) {
		n++
		if !strings.HasSuffix(line, "\n") {
			return nil // torn by a crash, never given out
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return fmt.Errorf("leases: %s line %d: %w", b.path, n, err)
		}
		switch {
		case r.Add != nil:
			for _, a := range r.Add.IPs {
				if other, ok := b.used[a]; ok && other != r.Add.Key {
					return fmt.Errorf("leases: %s line %d: %s is leased to %s already", b.path, n, a, other.Container)
				}
			}
			b.put(*r.Add)
		case r.Release != nil:
			b.drop(*r.Release, r.At)
		default:
			return fmt.Errorf("leases: %s line %d: neither add nor release", b.path, n)
		}
	}
	return nil
}

func (b *Book) put(l Lease) {
	b.leases[l.Key] = l
	for _, a := range l.IPs {
		b.used[a] = l.Key
		delete(b.freed, a)
	}
}

func (b *Book) drop(k Key, at time.Time) {
	for _, a := range b.leases[k].IPs {
		delete(b.used, a)
		b.freed[a] = at
	}
	delete(b.leases, k)
}

// compact writes a file of what counts now in the place of the old one.
func (b *Book) compact() error {
	temp := b.path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	var errs []error
	for a, at := range b.freed { // so that the cool-down outlives a restart
		if b.now().Sub(at) < b.coolDown {
			k := Key{Container: "freed", Interface: a.String()}
			errs = append(errs, enc.Encode(record{Add: &Lease{Key: k, IPs: []netip.Addr{a}}, At: at}), enc.Encode(record{Release: &k, At: at}))
		}
	}
	for _, l := range b.leases {
		errs = append(errs, enc.Encode(record{Add: &l, At: l.Since}))
	}
	errs = append(errs, w.Flush(), f.Sync())
	if err := errors.Join(errs...); err != nil {
		f.Close()
		return fmt.Errorf("leases: %w", err)
	}
	if err := errors.Join(os.Rename(temp, b.path), syncDir(filepath.Dir(b.path))); err != nil {
		f.Close()
		return fmt.Errorf("leases: %w", err)
	}
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.dead = f, 0
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// write appends a record and waits until it is on disk.
func (b *Book) write(r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	if _, err := b.file.Write(append(raw, '\n')); err != nil {
		// Part of a line may be there; what is good is written anew.
		return errors.Join(fmt.Errorf("leases: %w", err), b.compact())
	}
	if err := b.file.Sync(); err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	return nil
}

// Acquire leases an address of each of the networks. A key that has a lease
// already gets that one, and known is true.
func (b *Book) Acquire(k Key, w Wish, cidrs []netip.Prefix) (l Lease, known bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l, ok := b.leases[k]; ok {
		return l, true, nil
	}
	l = Lease{Key: k, Pod: w.Pod, HostLink: w.HostLink, MAC: w.MAC, Ports: w.Ports, Since: b.now().UTC()}
	if err := b.portsFree(w.Ports); err != nil {
		return Lease{}, false, err
	}
	for _, a := range w.IPs {
		if !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return Lease{}, false, fmt.Errorf("address %s is in none of the node's pod networks %v", a, cidrs)
		}
	}
	for _, p := range cidrs {
		a, err := b.choose(p, w.IPs)
		if err != nil {
			return Lease{}, false, err
		}
		l.IPs = append(l.IPs, a)
	}
	if len(l.IPs) == 0 {
		return Lease{}, false, errors.New("the node has no pod network (spec.podCIDRs is empty)")
	}
	if err := b.write(record{Add: &l, At: l.Since}); err != nil {
		return Lease{}, false, err
	}
	b.put(l)
	b.tell()
	return l, false, nil
}

func (b *Book) portsFree(list []hostport.Mapping) error {
	if len(list) == 0 {
		return nil
	}
	for _, l := range b.leases {
		for _, m := range list {
			if slices.ContainsFunc(l.Ports, m.Conflicts) {
				return Taken{m.String(), l.Key, l.Pod}
			}
		}
	}
	return nil
}

// choose is the address asked for in the network, or a free one.
func (b *Book) choose(p netip.Prefix, wanted []netip.Addr) (netip.Addr, error) {
	for _, a := range wanted {
		if !p.Contains(a) {
			continue
		}
		if proxy, ok := model.ProxyAddr(p); ok && a == proxy {
			return a, fmt.Errorf("address %s is for the node's ingress proxy", a)
		}
		if k, taken := b.used[a]; taken {
			return a, Taken{"address " + a.String(), k, b.leases[k].Pod}
		}
		return a, nil
	}
	return b.pick(p)
}

// unknown is the key of a link whose lease was lost: its container is not known, but
// the link's name follows from it.
func unknown(hostLink string) Key { return Key{Container: "unknown, link " + hostLink} }

// Adopt leases addresses that a link of the node has without a lease, as after the
// file was lost, so that nobody else gets them.
func (b *Book) Adopt(hostLink string, ips []netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := Lease{Key: unknown(hostLink), HostLink: hostLink, Since: b.now().UTC()}
	for _, a := range ips {
		if k, taken := b.used[a]; taken {
			return fmt.Errorf("link %s: %w", hostLink, Taken{"address " + a.String(), k, b.leases[k].Pod})
		}
		l.IPs = append(l.IPs, a)
	}
	if len(l.IPs) == 0 {
		return nil
	}
	if err := b.write(record{Add: &l, At: l.Since}); err != nil {
		return err
	}
	b.put(l)
	b.tell()
	return nil
}

// Find is the key of the lease that a container's interface has: its own, or that of
// an adopted link.
func (b *Book) Find(k Key, hostLink string) Key {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.leases[unknown(hostLink)]; ok {
		return unknown(hostLink)
	}
	return k
}

// pick finds a free address, round robin, or else the one that cooled the longest.
func (b *Book) pick(p netip.Prefix) (netip.Addr, error) {
	first, last := bounds(p)
	start, ok := b.next[p]
	if !ok || !p.Contains(start) || start.Compare(last) > 0 {
		start = first
	}
	var oldest netip.Addr
	a := start
	for n := 0; ; n++ {
		if n > 0 && a == start {
			break
		}
		if _, taken := b.used[a]; !taken {
			at, cooling := b.freed[a]
			if !cooling || b.now().Sub(at) >= b.coolDown {
				b.next[p] = after(a, first, last)
				return a, nil
			}
			if !oldest.IsValid() || at.Before(b.freed[oldest]) {
				oldest = a
			}
		}
		a = after(a, first, last)
	}
	if oldest.IsValid() {
		return oldest, nil
	}
	leased := 0
	for u := range b.used {
		if p.Contains(u) {
			leased++
		}
	}
	return netip.Addr{}, Full{p, leased}
}

// Room says whether a lease of each of the networks could be given now: nil, or Full.
func (b *Book) Room(cidrs []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range cidrs {
		next := b.next[p]
		_, err := b.pick(p)
		b.next[p] = next // nothing was taken
		if err != nil {
			return err
		}
	}
	return nil
}

// bounds are the first and the last address that pods get: not the network's own,
// not the first behind it, which others take for a gateway, and not IPv4's
// broadcast address. Of a large IPv6 network the first 65,536 are enough. The last of
// these is the ingress proxy's, whether there is one or not.
func bounds(p netip.Prefix) (first, last netip.Addr) {
	p = p.Masked()
	first = p.Addr()
	if proxy, ok := model.ProxyAddr(p); ok {
		return first.Next().Next(), proxy.Prev()
	}
	last = first
	for p.Contains(last.Next()) { // of fewer than 8
		last = last.Next()
	}
	return first, last
}

func after(a, first, last netip.Addr) netip.Addr {
	if a == last {
		return first
	}
	return a.Next()
}

// Release ends a lease and returns it; ok is false when there was none.
func (b *Book) Release(k Key) (l Lease, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok = b.leases[k]
	if !ok {
		return Lease{}, false, nil
	}
	at := b.now().UTC()
	if err := b.write(record{Release: &k, At: at}); err != nil {
		return Lease{}, false, err
	}
	b.drop(k, at)
	b.tell()
	if b.dead += 2; b.dead > 2000 && b.dead > 2*len(b.leases) {
		return l, true, b.compact()
	}
	return l, true, nil
}

// Get returns the lease of a key.
func (b *Book) Get(k Key) (Lease, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.leases[k]
	return l, ok
}

// List returns all leases, by address.
func (b *Book) List() []Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list()
}

// Follow has fn called with all leases, now and before each call that changes them
// returns. fn must not call the book.
func (b *Book) Follow(fn func([]Lease)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.follow = fn
	b.tell()
}

func (b *Book) tell() {
	if b.follow != nil {
		b.follow(b.list())
	}
}

func (b *Book) list() []Lease {
	out := make([]Lease, 0, len(b.leases))
	for _, l := range b.leases {
		out = append(out, l)
	}
	slices.SortFunc(out, func(x, y Lease) int { return x.IPs[0].Compare(y.IPs[0]) })
	return out
}

// Close closes the file.
func (b *Book) Close() error { return b.file.Close() }
