package server

import (
	"net/netip"
	"sync"
	"time"
)

// evictStreams is how many streams are ended at once, so that the cost per stream of a flood is small.
const evictStreams = 16

// streamTable holds the exchanges of HTTP/2 by client. Its methods may be called concurrently.
type streamTable struct {
	mu sync.Mutex
	// all counts streams that were not evicted; leaving counts evicted ones that still run.
	all, leaving int
	client       map[netip.Addr]map[*stream]struct{}
	futile       futile
}

// enter counts an exchange of a client. A client may have clientStreams, and as many as are free; above that, streams
// are ended that wait for a client with more of them. why is empty, or names the limit that was reached.
func (t *streamTable) enter(a netip.Addr, s *stream) (why Refusal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := len(t.client[a])
	if own >= clientStreams {
		return TooManyOfClientStreams
	}
	if own >= allStreams-t.all && t.evict(own) == 0 {
		if t.all >= allStreams {
			return TooManyStreams
		}
		return TooManyOfClientStreams
	}
	if t.client == nil {
		t.client = map[netip.Addr]map[*stream]struct{}{}
	}
	if t.client[a] == nil {
		t.client[a] = map[*stream]struct{}{}
	}
	t.client[a][s] = struct{}{}
	t.all++
	return ""
}

// evict ends streams of the client with the most, if it has more than own and another; t.mu is held.
func (t *streamTable) evict(own int) (n int) {
	now := time.Now()
	if t.leaving >= allStreams/leavingShare || now.Before(t.futile.until) && own >= t.futile.own {
		return 0
	}
	var list map[*stream]struct{}
	for _, l := range t.client {
		if len(l) > len(list) {
			list = l
		}
	}
	most := min(evictStreams, len(list)-own-1)
	for s := range list {
		if n >= most {
			break
		}
		if s.expire() {
			delete(list, s)
			s.evicted = true
			n++
		}
	}
	t.all, t.leaving = t.all-n, t.leaving+n
	if n == 0 {
		t.futile = futile{now.Add(futileFor), own}
	}
	return n
}

// leave removes an exchange from the counts.
func (t *streamTable) leave(a netip.Addr, s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.evicted {
		t.leaving--
	} else {
		t.all--
	}
	if delete(t.client[a], s); len(t.client[a]) == 0 {
		delete(t.client, a)
	}
}

// total returns the number of running exchanges.
func (t *streamTable) total() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all + t.leaving
}

// expire ends the wait for the client, if there is one. It does not wait for the client's connection.
func (s *stream) expire() bool {
	s.k.mu.Lock()
	owed := s.owed
	s.k.mu.Unlock()
	if !owed.any() {
		return false
	}
	go func() {
		s.ending.Lock()
		defer s.ending.Unlock()
		switch {
		case s.over: // x/net has taken back what the deadline would be set of
		case owed.response:
			_ = s.rc.SetWriteDeadline(time.Unix(1, 0))
		default:
			_ = s.rc.SetReadDeadline(time.Unix(1, 0))
		}
	}()
	return true
}
