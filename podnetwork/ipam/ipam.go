// Package ipam leases addresses of the node's pod networks, and remembers the
// leases through crashes and reboots.
//
// Invariants:
//   - A lease is on disk before its address is given out; a release is on disk before the
//     address is given out again.
//   - No address is leased twice, nor again before its cool-down has passed, unless
//     nothing else is left.
//   - The address of the node's ingress proxy (model.ProxyAddr) is leased to nobody anew.
//   - A damaged file is told of by its lines, and what is good of it is used. Leases that
//     are lost with the rest are those of links that exist: Adopt and Correct take them from
//     the kernel before an address is given out (cni.Server.Reconcile).
//   - Cool-downs run by the monotonic clock. One from before a start begins anew where the
//     node's clock may have been set.
package ipam

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"wayleave.dev/internal/statefile"
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
	// Sum is of the line without it, so that a changed byte is seen. Lines of earlier versions have none.
	Sum string `json:"sum,omitempty"`
}

// line is a record as it is in the file.
func (r record) line() ([]byte, error) {
	sum, err := r.sum()
	if err != nil {
		return nil, err
	}
	r.Sum = sum
	raw, err := json.Marshal(r)
	return append(raw, '\n'), err
}

func (r record) sum() (string, error) {
	r.Sum = ""
	raw, err := json.Marshal(r)
	return strconv.FormatUint(uint64(crc32.ChecksumIEEE(raw)), 36), err
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
	freed    map[netip.Addr]release
	next     map[netip.Prefix]netip.Addr
	follow   func([]Lease)
	dead     int // records in the file that no longer count
	size     int64
	// stale says that the file is not what the book knows: it is written anew before the next lease.
	stale bool
	// damaged says that lines of the file were not read when the book was opened.
	damaged bool
	tell    statefile.Tell
}

// release is the end of a lease: when, by the wall clock, and when its cool-down began in this process.
type release struct{ at, since time.Time }

// clockStep is by how much the node's clock may be set between two starts without a cool-down being cut short.
const clockStep = 2 * time.Hour

// Open reads the book of a folder, which is made when it is missing. now is the
// clock, nil for the real one. tell, which may be nil, is told of damage and of a disk that takes nothing:
// no lease is given then, and those that exist stay.
func Open(dir string, coolDown time.Duration, now func() time.Time, tell statefile.Tell) *Book {
	if now == nil {
		now = time.Now
	}
	b := &Book{path: filepath.Join(dir, "leases"), coolDown: coolDown, now: now, tell: tell, leases: map[Key]Lease{},
		used: map[netip.Addr]Key{}, freed: map[netip.Addr]release{}, next: map[netip.Prefix]netip.Addr{}}
	err := b.load()
	if b.damaged = err != nil; b.damaged {
		// For people; compact replaces the file.
		_ = os.Remove(b.path + ".damaged")
		_ = os.Link(b.path, b.path+".damaged")
	}
	if full := errors.Join(os.MkdirAll(dir, 0o700), b.compact()); full != nil {
		b.stale = err != nil || b.append() != nil
		err = errors.Join(err, full)
	}
	b.say(err)
	return b
}

func (b *Book) say(err error) {
	if b.tell != nil && err != nil {
		b.tell(b.path, fmt.Errorf("leases: %w", err))
	}
}

// freed is the container of records of addresses that cool down.
const freed = "freed"

// saidLines are the lines of a damaged file that are named.
const saidLines = 3

// load reads the journal, and says which lines are damaged.
func (b *Book) load() error {
	raw, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	n, bad := 0, 0
	for line := range strings.Lines(string(raw)) {
		n++
		if !strings.HasSuffix(line, "\n") {
			break // torn by a crash, never given out
		}
		if err := b.read(line); err != nil {
			if bad++; bad <= saidLines {
				errs = append(errs, fmt.Errorf("%s line %d: %w", b.path, n, err))
			}
		}
	}
	for k := range b.leases {
		if k.Container == freed { // its release is damaged
			b.drop(k, release{b.now().UTC(), b.now()})
		}
	}
	if bad > saidLines {
		errs = append(errs, fmt.Errorf("%s: %d damaged lines in total", b.path, bad))
	}
	return errors.Join(errs...)
}

// read takes in one line.
func (b *Book) read(line string) error {
	var r record
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return err
	}
	if sum, err := r.sum(); err != nil || r.Sum != "" && r.Sum != sum {
		return errors.Join(errors.New("wrong checksum"), err)
	}
	switch {
	case r.Add != nil:
		return b.readAdd(*r.Add)
	case r.Release != nil:
		since := b.now()
		if gone := since.Sub(r.At); gone >= 0 && gone < b.coolDown {
			since = since.Add(-gone)
		}
		b.drop(*r.Release, release{r.At, since})
		return nil
	}
	return errors.New("neither add nor release")
}

func (b *Book) readAdd(l Lease) error {
	if l.Container == "" || len(l.IPs) == 0 ||
		slices.ContainsFunc(l.IPs, func(a netip.Addr) bool { return !a.IsValid() }) {
		return errors.New("a lease without container or address")
	}
	var err error
	for _, a := range l.IPs {
		if other, ok := b.used[a]; ok && other != l.Key {
			// Both stay, and the address is nobody else's until both have ended.
			err = fmt.Errorf("%s is leased to %s already", a, other.Container)
		}
	}
	b.put(l)
	return err
}

// put takes in a lease. One that the key has with other addresses ends.
func (b *Book) put(l Lease) {
	if old, ok := b.leases[l.Key]; ok && !slices.Equal(old.IPs, l.IPs) {
		b.drop(l.Key, release{b.now().UTC(), b.now()})
	}
	b.leases[l.Key] = l
	for _, a := range l.IPs {
		if _, taken := b.used[a]; !taken {
			b.used[a] = l.Key
		}
		delete(b.freed, a)
	}
}

// drop ends a lease. An address that a damaged file gave to another one too is that one's.
func (b *Book) drop(k Key, at release) {
	l := b.leases[k]
	delete(b.leases, k)
	for _, a := range l.IPs {
		delete(b.used, a)
		for other, o := range b.leases {
			if slices.Contains(o.IPs, a) {
				b.used[a] = other
			}
		}
		if _, taken := b.used[a]; !taken {
			b.freed[a] = at
		}
	}
}

// compact writes a file of what counts now in the place of the old one.
func (b *Book) compact() error {
	temp := b.path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := b.writeAll(f)
	if err == nil {
		err = os.Rename(temp, b.path)
	}
	if err != nil {
		_ = os.Remove(temp) // gives a full disk its space back
		return errors.Join(err, f.Close())
	}
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.size, b.dead = f, size, 0
	err = statefile.SyncDir(filepath.Dir(b.path))
	b.stale = err != nil
	return err
}

// writeAll writes what counts now.
func (b *Book) writeAll(f *os.File) (int64, error) {
	w := bufio.NewWriter(f)
	var errs []error
	put := func(r record) {
		raw, err := r.line()
		_, full := w.Write(raw)
		errs = append(errs, err, full)
	}
	for a, r := range b.freed { // so that the cool-down outlives a restart
		if b.now().Sub(r.at) < b.coolDown+clockStep || b.cooling(a) {
			k := Key{Container: freed, Interface: a.String()}
			put(record{Add: &Lease{Key: k, IPs: []netip.Addr{a}}, At: r.at})
			put(record{Release: &k, At: r.at})
		}
	}
	for _, l := range b.leases {
		put(record{Add: &l, At: l.Since})
	}
	if err := errors.Join(append(errs, w.Flush(), f.Sync())...); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// append goes on with the file that there is, on a disk with no room for another one. A torn last line is cut
// off.
func (b *Book) append() error {
	raw, err := os.ReadFile(b.path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(b.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	b.size = int64(bytes.LastIndexByte(raw, '\n') + 1)
	if b.size < int64(len(raw)) {
		if err := f.Truncate(b.size); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	b.file = f
	return nil
}

// cooling says whether an address may not be given out again yet.
func (b *Book) cooling(a netip.Addr) bool {
	r, ok := b.freed[a]
	return ok && b.now().Sub(r.since) < b.coolDown
}

// write appends a record and waits until it is on disk. After an error the file is as before, as far as the
// disk allows, and is written anew before the next record.
func (b *Book) write(r record) error {
	raw, err := r.line()
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	if b.stale {
		if err := b.compact(); err != nil {
			return fmt.Errorf("leases: %w", err)
		}
	}
	n, err := b.file.Write(raw)
	if err == nil {
		err = b.file.Sync()
	}
	if err != nil {
		b.stale = true
		_ = b.file.Truncate(b.size) // part of a line may be there
		return fmt.Errorf("leases: %w", err)
	}
	b.size += int64(n)
	if b.tell != nil {
		b.tell(b.path, nil)
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
	b.told()
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
	var errs []error
	for _, a := range ips {
		if k, taken := b.used[a]; taken {
			errs = append(errs, fmt.Errorf("link %s: %w", hostLink, Taken{"address " + a.String(), k, b.leases[k].Pod}))
			continue
		}
		l.IPs = append(l.IPs, a)
	}
	if len(l.IPs) > 0 {
		b.record(l)
	}
	return errors.Join(errs...)
}

// Correct gives leases the addresses that their links have, where a damaged file said others. A whole file is
// believed: a link may have routes of an ADD that a crash cut short. A link without an address of a family keeps
// that of its lease, and so does one that has the lease's address beside others.
func (b *Book) Correct(links map[Key][]netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.damaged {
		return
	}
	var wrong []Lease
	for k, ips := range links {
		l, ok := b.leases[k]
		if corrected := of(l.IPs, ips); ok && !slices.Equal(corrected, l.IPs) {
			b.drop(k, release{b.now().UTC(), b.now()})
			l.IPs = corrected
			wrong = append(wrong, l)
		}
	}
	if len(wrong) == 0 {
		return
	}
	for _, l := range wrong { // two may have each other's
		b.put(l)
	}
	if err := b.compact(); err != nil {
		b.stale = true
		b.say(err)
	}
	b.told()
}

// of is a lease's addresses with those of the link in the place of others of their family.
func of(lease, link []netip.Addr) []netip.Addr {
	out := slices.Clone(lease)
	for _, a := range link {
		if slices.ContainsFunc(lease, func(o netip.Addr) bool {
			return o.Is4() == a.Is4() &&
				slices.Contains(link, o)
		}) {
			continue
		}
		i := slices.IndexFunc(out, func(o netip.Addr) bool { return o.Is4() == a.Is4() })
		if i < 0 {
			out = append(out, a)
		} else {
			out[i] = a
		}
	}
	return out
}

// record takes in what is so already, whether the disk takes it or not.
func (b *Book) record(l Lease) {
	b.put(l)
	if err := b.write(record{Add: &l, At: l.Since}); err != nil {
		b.stale = true
		b.say(err)
	}
	b.told()
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
			if !b.cooling(a) {
				b.next[p] = after(a, first, last)
				return a, nil
			}
			if !oldest.IsValid() || b.freed[a].since.Before(b.freed[oldest].since) {
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

// Release ends a lease and returns it; ok is false when there was none. A disk that takes nothing does not keep
// it: the lease is ended, and the file is written anew before an address is given out.
func (b *Book) Release(k Key) (l Lease, ok bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok = b.leases[k]
	if !ok {
		return Lease{}, false, nil
	}
	at := release{b.now().UTC(), b.now()}
	if err := b.write(record{Release: &k, At: at.at}); err != nil {
		b.say(err)
	}
	b.drop(k, at)
	b.told()
	if b.dead += 2; b.dead > 2000 && b.dead > 2*len(b.leases) && !b.stale {
		if err := b.compact(); err != nil { // the longer file serves as well
			b.say(err)
		}
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
	b.told()
}

// told has who follows know of a change.
func (b *Book) told() {
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
func (b *Book) Close() error {
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}
