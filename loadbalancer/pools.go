package loadbalancer

import (
	"container/heap"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"wayleave.dev/model"
)

// pool is an AddressPool with the part of its ranges that it owns.
type pool struct {
	*model.AddressPool
	segments []*segment
	// overlaps lists the parts that older pools own.
	overlaps []string
	// used counts addresses in use; free those that can still be allocated, by family.
	used  int64
	free  [2]int64
	total [2]int64
}

// family returns the index of an address's family: 0 for IPv4, 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

var familyNames = [2]string{"IPv4", "IPv6"}

// segment is a range that belongs to one pool. Every free address of it below next is in holes, so a free one is
// found without a search.
type segment struct {
	model.Range
	pool  *pool
	next  netip.Addr // invalid once all were allocated
	holes holes
}

// holes is a heap of released addresses, the lowest first.
type holes struct {
	list []netip.Addr
	in   map[netip.Addr]bool
}

func (h *holes) Len() int           { return len(h.list) }
func (h *holes) Less(i, j int) bool { return h.list[i].Less(h.list[j]) }
func (h *holes) Swap(i, j int)      { h.list[i], h.list[j] = h.list[j], h.list[i] }
func (h *holes) Push(x any)         { h.list = append(h.list, x.(netip.Addr)) }
func (h *holes) Pop() any {
	last := h.list[len(h.list)-1]
	h.list = h.list[:len(h.list)-1]
	return last
}

// giveBack records that no Service has the address any more.
func (s *segment) giveBack(a netip.Addr) {
	if (s.next.IsValid() && !a.Less(s.next)) || s.avoids(a) || s.holes.in[a] {
		return
	}
	if s.holes.in == nil {
		s.holes.in = map[netip.Addr]bool{}
	}
	s.holes.in[a] = true
	heap.Push(&s.holes, a)
}

// first returns the lowest free address according to used.
func (s *segment) first(used func(netip.Addr) bool) (netip.Addr, bool) {
	for s.holes.Len() > 0 {
		a := s.holes.list[0]
		if !used(a) {
			return a, true
		}
		heap.Pop(&s.holes)
		delete(s.holes.in, a)
	}
	for s.next.IsValid() && (used(s.next) || s.avoids(s.next)) {
		if s.next == s.To {
			s.next = netip.Addr{}
		} else {
			s.next = s.next.Next()
		}
	}
	return s.next, s.next.IsValid()
}

// avoids reports whether the pool excludes the address.
func (s *segment) avoids(a netip.Addr) bool {
	return s.pool.AvoidBuggy && buggy(a)
}

func buggy(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}

// size returns how many addresses of the segment can be allocated.
func (s *segment) size() int64 {
	n := s.Range.Size()
	if !s.pool.AvoidBuggy || !s.From.Is4() {
		return n
	}
	// below counts the buggy addresses below x.
	below := func(x int64) int64 {
		n := x / 256 * 2
		if x%256 > 0 {
			n++
		}
		return n
	}
	from, to := number(s.From), number(s.To)
	return n - (below(to+1) - below(from))
}

func number(a netip.Addr) int64 {
	b := a.As4()
	return int64(b[0])<<24 | int64(b[1])<<16 | int64(b[2])<<8 | int64(b[3])
}

// layout maps addresses to pools, with sorted segments.
type layout struct {
	pools    []*pool // the oldest first
	byName   map[string]*pool
	segments []*segment
}

// newLayout divides the addresses among the pools: the older pool owns an overlap.
func newLayout(in []*model.AddressPool) *layout {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b *model.AddressPool) int {
		if a.Before(b) {
			return -1
		}
		return 1
	})
	l := &layout{byName: map[string]*pool{}}
	for _, p := range in {
		own := &pool{AddressPool: p}
		l.pools, l.byName[p.Name] = append(l.pools, own), own
		for _, r := range merge(p.Ranges) {
			l.add(own, r)
		}
	}
	return l
}

// merge sorts ranges and joins those that overlap.
func merge(ranges []model.Range) (out []model.Range) {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b model.Range) int { return a.From.Compare(b.From) })
	for _, r := range sorted {
		if n := len(out); n > 0 && out[n-1].Contains(r.From) {
			if out[n-1].To.Less(r.To) {
				out[n-1].To = r.To
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// add gives the pool the parts of the range that no pool has.
func (l *layout) add(p *pool, r model.Range) {
	i, _ := slices.BinarySearchFunc(l.segments, r.From, func(s *segment, a netip.Addr) int { return s.To.Compare(a) })
	from, rest := r.From, true
	var own []*segment
	var at []int
	for ; i < len(l.segments) && !r.To.Less(l.segments[i].From); i++ {
		s := l.segments[i]
		common := model.Range{From: maxAddr(from, s.From), To: minAddr(r.To, s.To)}
		if s.pool != p {
			p.overlaps = append(p.overlaps, fmt.Sprintf("%s belongs to AddressPool %s", common, s.pool.Name))
		}
		if from.Less(s.From) {
			own, at = append(own, &segment{Range: model.Range{From: from, To: s.From.Prev()}, pool: p, next: from}),
				append(at, i)
		}
		if s.To == r.To || r.To.Less(s.To) {
			rest = false
			i++
			break
		}
		from = s.To.Next()
	}
	if rest {
		own, at = append(own, &segment{Range: model.Range{From: from, To: r.To}, pool: p, next: from}), append(at, i)
	}
	for n := len(own) - 1; n >= 0; n-- {
		l.segments = slices.Insert(l.segments, at[n], own[n])
	}
	p.segments = append(p.segments, own...)
	for _, s := range own {
		f := family(s.From)
		p.total[f] = sum(p.total[f], s.size())
		p.free[f] = p.total[f]
	}
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func minAddr(a, b netip.Addr) netip.Addr {
	if b.Less(a) {
		return b
	}
	return a
}

// sum adds numbers that may reach the maximum of int64.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// of returns the segment that contains the address, nil for none.
func (l *layout) of(a netip.Addr) *segment {
	i, found := slices.BinarySearchFunc(l.segments, a, func(s *segment, a netip.Addr) int {
		return s.To.Compare(a)
	})
	if !found && (i == len(l.segments) || !l.segments[i].Contains(a)) {
		return nil
	}
	return l.segments[i]
}

// count records that an address is used from now on (1), or no more (-1).
func (l *layout) count(a netip.Addr, n int64) {
	s := l.of(a)
	if s == nil {
		return
	}
	s.pool.used += n
	if f := family(a); !s.avoids(a) && s.pool.total[f] < math.MaxInt64 {
		s.pool.free[f] -= n
	}
	if n < 0 {
		s.giveBack(a)
	}
}

// first returns the lowest free address of the family in the pool.
func (p *pool) first(f int, used func(netip.Addr) bool) (netip.Addr, bool) {
	for _, s := range p.segments {
		if family(s.From) != f {
			continue
		}
		if a, ok := s.first(used); ok {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Reasons of the condition Ready of an AddressPool.
const (
	ReasonReady    = "Ready"
	ReasonFull     = "Full"
	ReasonOverlaps = "Overlaps"
	ReasonInvalid  = "Invalid"
)

// PoolStatus is the status of an AddressPool.
type PoolStatus struct {
	// Used and Free count addresses, at most 2^63-1.
	Used, Free int64
	// Reason and Message are those of the condition Ready, which is true only for the reason Ready.
	Reason, Message string
}

func (p *pool) status() PoolStatus {
	s := PoolStatus{Used: p.used, Free: sum(p.free[0], p.free[1]), Reason: ReasonReady,
		Message: "addresses can be given"}
	var full []string
	for f, total := range p.total {
		if total > 0 && p.free[f] <= 0 {
			full = append(full, familyNames[f])
		}
	}
	switch {
	case p.Invalid != "":
		s.Reason, s.Message = ReasonInvalid, p.Invalid
	case len(p.overlaps) > 0:
		s.Reason, s.Message = ReasonOverlaps, overlapText(p)
	case len(full) > 0:
		s.Reason, s.Message = ReasonFull, "no "+strings.Join(full, " and no ")+" address is free"
	case p.total == [2]int64{}:
		s.Reason, s.Message = ReasonFull, "avoidBuggyAddresses leaves no address"
	}
	return s
}

func overlapText(p *pool) string {
	return strings.Join(p.overlaps, ", ") + ", which is older; the rest is allocated from this pool"
}
