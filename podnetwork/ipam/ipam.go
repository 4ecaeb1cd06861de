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

// LeaseRequest is what a pod asks for with its lease.
type LeaseRequest struct {
	Pod, HostLink string
	MAC           net.HardwareAddr
	Ports         []hostport.Mapping
	// IPs are addresses asked for, at most one per family; others are chosen.
	IPs []netip.Addr
}

// ConflictError says that something asked for belongs to another.
type ConflictError struct {
	What string
	By   Key
	Pod  string
}

// Error names who has it.
func (e ConflictError) Error() string {
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

// ExhaustedError says that a pod network has no address left.
type ExhaustedError struct {
	CIDR   netip.Prefix
	Leased int
}

// Error names the network.
func (e ExhaustedError) Error() string {
	return fmt.Sprintf("pod network %s is full: %d addresses are leased", e.CIDR, e.Leased)
}

// LeaseStore is the leases of a node, and their journal on disk. It is safe for concurrent use.
type LeaseStore struct {
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
	// stale says that the file is not up to date: it is written anew before the next lease.
	stale bool
	// damaged says that lines of the file were not read when the store was opened.
	damaged bool
	tell    statefile.Tell
}

// release is the end of a lease: when, by the wall clock, and when its cool-down began in this process.
type release struct{ at, since time.Time }

// clockStep is by how much the node's clock may be set between two starts without a cool-down being cut short.
const clockStep = 2 * time.Hour

// Open reads the leases of a folder, which is made when it is missing. now is the
// clock, nil for the real one. tell, which may be nil, is told of damage and of a disk that takes nothing:
// no lease is given then, and those that exist stay.
func Open(dir string, coolDown time.Duration, now func() time.Time, tell statefile.Tell) *LeaseStore {
	if now == nil {
		now = time.Now
	}
	s := &LeaseStore{path: filepath.Join(dir, "leases"), coolDown: coolDown, now: now, tell: tell,
		leases: map[Key]Lease{}, used: map[netip.Addr]Key{}, freed: map[netip.Addr]release{},
		next: map[netip.Prefix]netip.Addr{}}
	err := s.load()
	if s.damaged = err != nil; s.damaged {
		// For people; compact replaces the file.
		_ = os.Remove(s.path + ".damaged")
		_ = os.Link(s.path, s.path+".damaged")
	}
	if full := errors.Join(os.MkdirAll(dir, 0o700), s.compact()); full != nil {
		s.stale = err != nil || s.append() != nil
		err = errors.Join(err, full)
	}
	s.report(err)
	return s
}

func (s *LeaseStore) report(err error) {
	if s.tell != nil && err != nil {
		s.tell(s.path, fmt.Errorf("leases: %w", err))
	}
}

// freed is the container of records of addresses that cool down.
const freed = "freed"

// saidLines are the lines of a damaged file that are named.
const saidLines = 3

// load reads the journal, and says which lines are damaged.
func (s *LeaseStore) load() error {
	raw, err := os.ReadFile(s.path)
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
		if err := s.read(line); err != nil {
			if bad++; bad <= saidLines {
				errs = append(errs, fmt.Errorf("%s line %d: %w", s.path, n, err))
			}
		}
	}
	for k := range s.leases {
		if k.Container == freed { // its release is damaged
			s.drop(k, release{s.now().UTC(), s.now()})
		}
	}
	if bad > saidLines {
		errs = append(errs, fmt.Errorf("%s: %d damaged lines in total", s.path, bad))
	}
	return errors.Join(errs...)
}

// read takes in one line.
func (s *LeaseStore) read(line string) error {
	var r record
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return err
	}
	if sum, err := r.sum(); err != nil || r.Sum != "" && r.Sum != sum {
		return errors.Join(errors.New("wrong checksum"), err)
	}
	switch {
	case r.Add != nil:
		return s.readAdd(*r.Add)
	case r.Release != nil:
		since := s.now()
		if gone := since.Sub(r.At); gone >= 0 && gone < s.coolDown {
			since = since.Add(-gone)
		}
		s.drop(*r.Release, release{r.At, since})
		return nil
	}
	return errors.New("neither add nor release")
}

func (s *LeaseStore) readAdd(l Lease) error {
	if l.Container == "" || len(l.IPs) == 0 ||
		slices.ContainsFunc(l.IPs, func(a netip.Addr) bool { return !a.IsValid() }) {
		return errors.New("a lease without container or address")
	}
	var err error
	for _, a := range l.IPs {
		if other, ok := s.used[a]; ok && other != l.Key {
			// Both stay, and the address is nobody else's until both have ended.
			err = fmt.Errorf("%s is leased to %s already", a, other.Container)
		}
	}
	s.put(l)
	return err
}

// put takes in a lease. One that the key has with other addresses ends.
func (s *LeaseStore) put(l Lease) {
	if old, ok := s.leases[l.Key]; ok && !slices.Equal(old.IPs, l.IPs) {
		s.drop(l.Key, release{s.now().UTC(), s.now()})
	}
	s.leases[l.Key] = l
	for _, a := range l.IPs {
		if _, taken := s.used[a]; !taken {
			s.used[a] = l.Key
		}
		delete(s.freed, a)
	}
}

// drop ends a lease. An address that a damaged file gave to another one too is that one's.
func (s *LeaseStore) drop(k Key, at release) {
	l := s.leases[k]
	delete(s.leases, k)
	for _, a := range l.IPs {
		delete(s.used, a)
		for other, o := range s.leases {
			if slices.Contains(o.IPs, a) {
				s.used[a] = other
			}
		}
		if _, taken := s.used[a]; !taken {
			s.freed[a] = at
		}
	}
}

// compact writes a file of what counts now in the place of the old one.
func (s *LeaseStore) compact() error {
	temp := s.path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := s.writeAll(f)
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err != nil {
		_ = os.Remove(temp) // gives a full disk its space back
		return errors.Join(err, f.Close())
	}
	if s.file != nil {
		s.file.Close()
	}
	s.file, s.size, s.dead = f, size, 0
	err = statefile.SyncDir(filepath.Dir(s.path))
	s.stale = err != nil
	return err
}

// writeAll writes what counts now.
func (s *LeaseStore) writeAll(f *os.File) (int64, error) {
	w := bufio.NewWriter(f)
	var errs []error
	put := func(r record) {
		raw, err := r.line()
		_, full := w.Write(raw)
		errs = append(errs, err, full)
	}
	for a, r := range s.freed { // so that the cool-down outlives a restart
		if s.now().Sub(r.at) < s.coolDown+clockStep || s.cooling(a) {
			k := Key{Container: freed, Interface: a.String()}
			put(record{Add: &Lease{Key: k, IPs: []netip.Addr{a}}, At: r.at})
			put(record{Release: &k, At: r.at})
		}
	}
	for _, l := range s.leases {
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
func (s *LeaseStore) append() error {
	raw, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	s.size = int64(bytes.LastIndexByte(raw, '\n') + 1)
	if s.size < int64(len(raw)) {
		if err := f.Truncate(s.size); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	s.file = f
	return nil
}

// cooling says whether an address may not be given out again yet.
func (s *LeaseStore) cooling(a netip.Addr) bool {
	r, ok := s.freed[a]
	return ok && s.now().Sub(r.since) < s.coolDown
}

// write appends a record and waits until it is on disk. After an error the file is as before, as far as the
// disk allows, and is written anew before the next record.
func (s *LeaseStore) write(r record) error {
	raw, err := r.line()
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	if s.stale {
		if err := s.compact(); err != nil {
			return fmt.Errorf("leases: %w", err)
		}
	}
	n, err := s.file.Write(raw)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		s.stale = true
		_ = s.file.Truncate(s.size) // part of a line may be there
		return fmt.Errorf("leases: %w", err)
	}
	s.size += int64(n)
	if s.tell != nil {
		s.tell(s.path, nil)
	}
	return nil
}

// Acquire leases an address of each of the networks. A key that has a lease
// already gets that one, and known is true.
func (s *LeaseStore) Acquire(k Key, w LeaseRequest, cidrs []netip.Prefix) (l Lease, known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.leases[k]; ok {
		return l, true, nil
	}
	l = Lease{Key: k, Pod: w.Pod, HostLink: w.HostLink, MAC: w.MAC, Ports: w.Ports, Since: s.now().UTC()}
	if err := s.portsFree(w.Ports); err != nil {
		return Lease{}, false, err
	}
	for _, a := range w.IPs {
		if !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return Lease{}, false, fmt.Errorf("address %s is in none of the node's pod networks %v", a, cidrs)
		}
	}
	for _, p := range cidrs {
		a, err := s.choose(p, w.IPs)
		if err != nil {
			return Lease{}, false, err
		}
		l.IPs = append(l.IPs, a)
	}
	if len(l.IPs) == 0 {
		return Lease{}, false, errors.New("the node has no pod network (spec.podCIDRs is empty)")
	}
	if err := s.write(record{Add: &l, At: l.Since}); err != nil {
		return Lease{}, false, err
	}
	s.put(l)
	s.told()
	return l, false, nil
}

func (s *LeaseStore) portsFree(list []hostport.Mapping) error {
	if len(list) == 0 {
		return nil
	}
	for _, l := range s.leases {
		for _, m := range list {
			if slices.ContainsFunc(l.Ports, m.Conflicts) {
				return ConflictError{m.String(), l.Key, l.Pod}
			}
		}
	}
	return nil
}

// choose is the address asked for in the network, or a free one.
func (s *LeaseStore) choose(p netip.Prefix, wanted []netip.Addr) (netip.Addr, error) {
	for _, a := range wanted {
		if !p.Contains(a) {
			continue
		}
		if proxy, ok := model.ProxyAddr(p); ok && a == proxy {
			return a, fmt.Errorf("address %s is for the node's ingress proxy", a)
		}
		if k, taken := s.used[a]; taken {
			return a, ConflictError{"address " + a.String(), k, s.leases[k].Pod}
		}
		return a, nil
	}
	return s.pick(p)
}

// unknown is the key of a link whose lease was lost: its container is not known, but
// the link's name follows from it.
func unknown(hostLink string) Key { return Key{Container: "unknown, link " + hostLink} }

// Adopt leases addresses that a link of the node has without a lease, as after the
// file was lost, so that nobody else gets them.
func (s *LeaseStore) Adopt(hostLink string, ips []netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := Lease{Key: unknown(hostLink), HostLink: hostLink, Since: s.now().UTC()}
	var errs []error
	for _, a := range ips {
		if k, taken := s.used[a]; taken {
			taken := ConflictError{"address " + a.String(), k, s.leases[k].Pod}
			errs = append(errs, fmt.Errorf("link %s: %w", hostLink, taken))
			continue
		}
		l.IPs = append(l.IPs, a)
	}
	if len(l.IPs) > 0 {
		s.record(l)
	}
	return errors.Join(errs...)
}

// Correct gives leases the addresses that their links have, where a damaged file said others. A whole file is
// believed: a link may have routes of an ADD that a crash cut short. A link without an address of a family keeps
// that of its lease, and so does one that has the lease's address beside others.
func (s *LeaseStore) Correct(links map[Key][]netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.damaged {
		return
	}
	var wrong []Lease
	for k, ips := range links {
		l, ok := s.leases[k]
		if corrected := of(l.IPs, ips); ok && !slices.Equal(corrected, l.IPs) {
			s.drop(k, release{s.now().UTC(), s.now()})
			l.IPs = corrected
			wrong = append(wrong, l)
		}
	}
	if len(wrong) == 0 {
		return
	}
	for _, l := range wrong { // two may have each other's
		s.put(l)
	}
	if err := s.compact(); err != nil {
		s.stale = true
		s.report(err)
	}
	s.told()
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
func (s *LeaseStore) record(l Lease) {
	s.put(l)
	if err := s.write(record{Add: &l, At: l.Since}); err != nil {
		s.stale = true
		s.report(err)
	}
	s.told()
}

// Find is the key of the lease that a container's interface has: its own, or that of
// an adopted link.
func (s *LeaseStore) Find(k Key, hostLink string) Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.leases[unknown(hostLink)]; ok {
		return unknown(hostLink)
	}
	return k
}

// pick finds a free address, round robin, or else the one that cooled the longest.
func (s *LeaseStore) pick(p netip.Prefix) (netip.Addr, error) {
	first, last := bounds(p)
	start, ok := s.next[p]
	if !ok || !p.Contains(start) || start.Compare(last) > 0 {
		start = first
	}
	var oldest netip.Addr
	a := start
	for n := 0; ; n++ {
		if n > 0 && a == start {
			break
		}
		if _, taken := s.used[a]; !taken {
			if !s.cooling(a) {
				s.next[p] = after(a, first, last)
				return a, nil
			}
			if !oldest.IsValid() || s.freed[a].since.Before(s.freed[oldest].since) {
				oldest = a
			}
		}
		a = after(a, first, last)
	}
	if oldest.IsValid() {
		return oldest, nil
	}
	leased := 0
	for u := range s.used {
		if p.Contains(u) {
			leased++
		}
	}
	return netip.Addr{}, ExhaustedError{p, leased}
}

// Room says whether a lease of each of the networks could be given now: nil, or ExhaustedError.
func (s *LeaseStore) Room(cidrs []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range cidrs {
		next := s.next[p]
		_, err := s.pick(p)
		s.next[p] = next // nothing was taken
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
func (s *LeaseStore) Release(k Key) (l Lease, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok = s.leases[k]
	if !ok {
		return Lease{}, false, nil
	}
	at := release{s.now().UTC(), s.now()}
	if err := s.write(record{Release: &k, At: at.at}); err != nil {
		s.report(err)
	}
	s.drop(k, at)
	s.told()
	if s.dead += 2; s.dead > 2000 && s.dead > 2*len(s.leases) && !s.stale {
		if err := s.compact(); err != nil { // the longer file serves as well
			s.report(err)
		}
	}
	return l, true, nil
}

// Get returns the lease of a key.
func (s *LeaseStore) Get(k Key) (Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.leases[k]
	return l, ok
}

// List returns all leases, by address.
func (s *LeaseStore) List() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list()
}

// Follow has fn called with all leases, now and before each call that changes them
// returns. fn must not call the store.
func (s *LeaseStore) Follow(fn func([]Lease)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow = fn
	s.told()
}

// told has who follows know of a change.
func (s *LeaseStore) told() {
	if s.follow != nil {
		s.follow(s.list())
	}
}

func (s *LeaseStore) list() []Lease {
	out := make([]Lease, 0, len(s.leases))
	for _, l := range s.leases {
		out = append(out, l)
	}
	slices.SortFunc(out, func(x, y Lease) int { return x.IPs[0].Compare(y.IPs[0]) })
	return out
}

// Close closes the file.
func (s *LeaseStore) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
