package l2

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Link is an interface for listening and answering.
type Link struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	MAC   MAC    `json:"mac"`
	// Up says whether the interface has a carrier.
	Up bool `json:"up"`
}

// Heard is an announcement of a known address by another machine.
type Heard struct {
	Addr netip.Addr
	MAC  MAC
	Link string
}

// table is what readers use. It is immutable.
type table struct {
	// vips are all known addresses, of this node and of others.
	vips map[netip.Addr]entry
	// hosts are the addresses of the other nodes.
	hosts map[netip.Addr]string
	links map[int]Link
}

type entry struct {
	answered bool
	on       []string
}

func (e entry) onLink(name string) bool {
	for _, n := range e.on {
		if n == name {
			return true
		}
	}
	return false
}

// Responder answers for addresses. Its methods are safe for concurrent use.
type Responder struct {
	log   *slog.Logger
	heard chan<- Heard

	now atomic.Pointer[table]
	// answers counts requests that were answered, ignored counts invalid frames and those above the rate.
	answers, ignored atomic.Uint64

	mu      sync.Mutex
	sockets map[socketOf]*os.File
	learned map[netip.Addr]MAC // the last MAC of each node's own address
	running sync.WaitGroup
	joiner  joiner
}

type socketOf struct {
	kind  Kind
	index int
}

// NewResponder returns a responder without addresses. Announcements of other machines are sent to heard, and dropped
// if it is full: they will be repeated.
func NewResponder(log *slog.Logger, heard chan<- Heard) *Responder {
	r := &Responder{log: log, heard: heard, sockets: map[socketOf]*os.File{}, learned: map[netip.Addr]MAC{}}
	r.now.Store(&table{})
	r.joiner.start()
	return r
}

// Counters returns the numbers of answers and ignored frames since the start.
func (r *Responder) Counters() (answers, ignored uint64) { return r.answers.Load(), r.ignored.Load() }

// Adopt uses a packet socket for an interface; it replaces the previous one.
func (r *Responder) Adopt(kind Kind, index int, f *os.File) {
	k := socketOf{kind, index}
	r.mu.Lock()
	old := r.sockets[k]
	r.sockets[k] = f
	r.running.Add(1)
	r.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	go func() {
		defer r.running.Done()
		r.read(k, f)
	}()
}

// Set replaces the complete state: the addresses of all nodes, those that this node answers for, the other nodes' own
// addresses, and the interfaces. Sockets of other interfaces are closed.
func (r *Responder) Set(vips []VIP, answering map[netip.Addr][]string, hosts map[netip.Addr]string, links []Link) {
	t := &table{vips: make(map[netip.Addr]entry, len(vips)), hosts: hosts, links: make(map[int]Link, len(links))}
	names := make(map[string]int, len(links))
	for _, l := range links {
		t.links[l.Index], names[l.Name] = l, l.Index
	}
	want := map[groupOn]bool{}
	for _, v := range vips {
		on, answered := answering[v.Addr]
		if !answered {
			on = v.Interfaces
		}
		t.vips[v.Addr] = entry{answered, on}
		if !v.Addr.Is6() {
			continue
		}
		// Joined in advance: switches have learned it when the address moves here.
		for _, n := range v.Interfaces {
			if index, ok := names[n]; ok {
				want[groupOn{solicitedNode(v.Addr).As16(), index}] = true
			}
		}
	}
	r.now.Store(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, f := range r.sockets {
		if _, ok := t.links[k.index]; !ok {
			_ = f.Close()
			delete(r.sockets, k)
		}
	}
	maps.DeleteFunc(r.learned, func(a netip.Addr, _ MAC) bool { _, ok := hosts[a]; return !ok })
	r.joiner.set(want)
}

// Close closes all sockets, and waits for the readers.
func (r *Responder) Close() {
	r.mu.Lock()
	for _, f := range r.sockets {
		_ = f.Close()
	}
	r.mu.Unlock()
	r.running.Wait()
	r.joiner.close()
}

// Problem returns the groups that could not be joined. They are retried.
func (r *Responder) Problem() error { return r.joiner.problem() }

// Peer returns the node whose own address was last seen with the MAC, or "".
func (r *Responder) Peer(mac MAC) string {
	hosts := r.now.Load().hosts
	r.mu.Lock()
	defer r.mu.Unlock()
	for addr, m := range r.learned {
		if m == mac {
			return hosts[addr]
		}
	}
	return ""
}

// learn records the MAC of a node, at most one per address of a node.
func (r *Responder) learn(addr netip.Addr, mac MAC) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.learned[addr] = mac
}

func (r *Responder) read(k socketOf, f *os.File) {
	frame, answer := make([]byte, snap), make([]byte, 0, 128)
	answers := newBucket(time.Now())
	for {
		n, err := f.Read(frame)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENETDOWN):
			continue // reported once when the interface goes down; it may come back
		case err != nil:
			r.log.Warn("packet socket", "kind", k.kind, "interface", k.index, "err", err)
			time.Sleep(100 * time.Millisecond) // avoids a tight loop
			continue
		}
		t := r.now.Load()
		link, ok := t.links[k.index]
		if !ok {
			continue
		}
		if k.kind == KindARP {
			answer = r.arp(t, link, frame[:n], answer[:0])
		} else {
			answer = r.ndp(t, link, frame[:n], answer[:0])
		}
		if len(answer) == 0 {
			continue
		}
		if !answers.take(time.Now()) {
			r.ignored.Add(1)
			continue
		}
		if _, err := f.Write(answer); err == nil {
			r.answers.Add(1)
		}
	}
}

// answersPerSecond bounds the replies that a flood of requests causes on each socket. A segment of thousands of
// machines sends tens of requests per second, and a machine without an answer repeats its request a second later.
const answersPerSecond = 5000

// bucket holds answers of at most one second.
type bucket struct {
	left float64
	at   time.Time
}

func newBucket(now time.Time) bucket { return bucket{answersPerSecond, now} }

func (b *bucket) take(now time.Time) bool {
	b.left = min(answersPerSecond, b.left+now.Sub(b.at).Seconds()*answersPerSecond)
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// arp returns the answer to a frame, or none.
func (r *Responder) arp(t *table, link Link, frame, answer []byte) []byte {
	q, ok := ParseARP(frame)
	if !ok {
		r.ignored.Add(1)
		return nil
	}
	if q.SenderMAC == link.MAC {
		return nil
	}
	if _, ok := t.hosts[q.SenderIP]; ok {
		r.learn(q.SenderIP, q.SenderMAC)
	}
	if e, ok := t.vips[q.SenderIP]; ok && e.onLink(link.Name) {
		r.tell(t, Heard{q.SenderIP, q.SenderMAC, link.Name})
	}
	if e := t.vips[q.TargetIP]; q.Request && e.answered && q.SenderIP != q.TargetIP && e.onLink(link.Name) {
		return arpAnswer(answer, q, link.MAC)
	}
	return nil
}

func (r *Responder) ndp(t *table, link Link, frame, answer []byte) []byte {
	q, ok := ParseNDP(frame)
	if !ok {
		r.ignored.Add(1)
		return nil
	}
	if q.MAC == link.MAC {
		return nil
	}
	if _, ok := t.hosts[q.Source]; ok {
		r.learn(q.Source, q.MAC)
	}
	e, ok := t.vips[q.Target]
	switch {
	case !ok || !e.onLink(link.Name):
	case !q.Solicitation:
		r.tell(t, Heard{q.Target, q.MAC, link.Name})
	case e.answered:
		return ndpAnswer(answer, q, link.MAC)
	}
	return nil
}

// tell passes on an announcement, unless this node sent it on another of its interfaces.
func (r *Responder) tell(t *table, h Heard) {
	for _, l := range t.links {
		if l.MAC == h.MAC {
			return
		}
	}
	select {
	case r.heard <- h:
	default:
	}
}

// Announce announces addresses of this node. The error names the interfaces where that failed.
func (r *Responder) Announce(addrs []netip.Addr) error {
	t := r.now.Load()
	failed := map[string]error{}
	var b []byte
	for _, a := range addrs {
		e, ok := t.vips[a]
		if !ok || !e.answered {
			continue
		}
		for _, l := range t.links {
			if !e.onLink(l.Name) || !l.Up {
				continue
			}
			var err error
			if a.Is4() {
				request, reply := arpAnnouncements(b[:0], a, l.MAC)
				err = errors.Join(r.send(KindARP, l, request), r.send(KindARP, l, reply))
			} else {
				err = r.send(KindNDP, l, ndpAnnouncement(b[:0], a, l.MAC))
			}
			if err != nil {
				failed[l.Name] = err
			}
		}
	}
	var errs []error
	for name, err := range failed {
		errs = append(errs, fmt.Errorf("announce on %s: %w", name, err))
	}
	return errors.Join(errs...)
}

// Ask sends requests for the addresses of the other nodes, so that the answers identify the owners of MACs that no
// heartbeat has named. The answers go to own, this node's addresses.
func (r *Responder) Ask(own []netip.Addr) {
	t := r.now.Load()
	for addr := range t.hosts {
		for _, from := range own {
			if from.Is4() != addr.Is4() {
				continue
			}
			for _, l := range t.links {
				if !l.Up {
					continue
				}
				// If sending fails, nothing is received either.
				if addr.Is4() {
					_ = r.send(KindARP, l, appendARP(nil, arpRequest, l.MAC, broadcast, from, addr, MAC{}))
				} else {
					_ = r.send(KindNDP, l, ndpQuestion(nil, from, addr, l.MAC))
				}
			}
			break
		}
	}
}

func (r *Responder) send(kind Kind, l Link, frame []byte) error {
	r.mu.Lock()
	f := r.sockets[socketOf{kind, l.Index}]
	r.mu.Unlock()
	if f == nil {
		return fmt.Errorf("no %s socket", kind)
	}
	_, err := f.Write(frame)
	return err
}
