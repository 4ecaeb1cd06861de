package server

import (
	"net/netip"
	"sync"
	"time"
)

// evictStreams are ended at once, so that a flood costs little for each.
const evictStreams = 16

// streamTable holds the exchanges of HTTP/2 by client. Its methods may be called concurrently.
type streamTable struct {
	mu sync.Mutex
	// all counts those that were not ended for others; leaving are those that were, and still run.
	all, leaving int
	client       map[netip.Addr]map[*stream]struct{}
	futile       futile
}

// enter counts an exchange of a client. A client may have clientStreams, and as many as are free; else streams that
// wait for a client that has more are ended. why is empty, or says what is full.
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

// evict ends streams of the client that has most, where that is more than own and another; t.mu is held.
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

// leave takes an exchange back.
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

// total is how many exchanges run.
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
