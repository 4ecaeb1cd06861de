package h1

import (
	"sync/atomic"
	"time"
)

// Phase is what a connection does.
type Phase int32

// The phases. A connection begins with Waiting.
const (
	// Waiting is for a PROXY header, a handshake, or the rest of a request's head.
	Waiting Phase = iota
	// Idle is between two requests.
	Idle
	// Busy has a request that waits for the proxy or an endpoint.
	Busy
	// Owing has a request whose client is to send more of its body, or to take more of the response.
	Owing
	// Evicted is ended for another connection.
	Evicted
)

// State is a connection's phase and since when it has it. Its methods may be called concurrently.
type State struct {
	crowd  *Crowd
	phase  atomic.Int32
	since  atomic.Int64 // Unix nanoseconds
	credit atomic.Int64 // bytes of an Owing client since then
}

// Crowd counts connections that wait. Too many of them call Full, which ends some by Evict.
type Crowd struct {
	waiting atomic.Int64
	// Most is how many may wait; 0 is no bound. Full is called when there are more.
	Most atomic.Int64
	Full func()
}

// Waiting is how many connections wait.
func (c *Crowd) Waiting() int { return int(c.waiting.Load()) }

// Start makes the state one of a connection that has just come, and waits. crowd may be nil. It must return before
// another goroutine may evict the connection: who is evicted uncounted would be counted for ever. It does not call
// Full, which Relieve does.
func (s *State) Start(crowd *Crowd) {
	s.crowd = crowd
	s.since.Store(time.Now().UnixNano())
	if crowd != nil {
		crowd.waiting.Add(1)
	}
}

// Relieve calls Full when too many wait.
func (c *Crowd) Relieve() {
	if most := c.Most.Load(); most > 0 && c.waiting.Load() > most && c.Full != nil {
		c.Full()
	}
}

// Look returns the phase, and since when.
func (s *State) Look() (Phase, time.Time) {
	return Phase(s.phase.Load()), time.Unix(0, s.since.Load())
}

// To changes the phase; false when the connection was evicted meanwhile, and is to end.
func (s *State) To(p Phase) bool {
	for {
		old := Phase(s.phase.Load())
		if old == Evicted {
			return false
		}
		if old == p {
			return true
		}
		if !s.phase.CompareAndSwap(int32(old), int32(p)) {
			continue
		}
		if p != Busy {
			s.since.Store(time.Now().UnixNano())
		}
		if old == Waiting && s.crowd != nil {
			s.crowd.waiting.Add(-1)
		}
		if p == Waiting && s.crowd != nil {
			s.crowd.waiting.Add(1)
			s.crowd.Relieve()
		}
		return true
	}
}

// Evict ends the phase p for good; false when the connection is in another one by now. Who evicts closes
// the connection.
func (s *State) Evict(p Phase) bool {
	if p == Evicted || !s.phase.CompareAndSwap(int32(p), int32(Evicted)) {
		return false
	}
	if p == Waiting && s.crowd != nil {
		s.crowd.waiting.Add(-1)
	}
	return true
}

// End is that of the connection.
func (s *State) End() { s.To(Evicted) }

// owingCredit are the bytes that begin the time of an Owing client anew.
const owingCredit = 16 << 10

// Owes says that the client is waited for, after n bytes of progress.
func (s *State) Owes(n int) {
	if Phase(s.phase.Load()) != Owing {
		s.credit.Store(0)
		s.To(Owing)
	}
	if n > 0 && s.credit.Add(int64(n)) >= owingCredit {
		s.credit.Store(0)
		s.since.Store(time.Now().UnixNano())
	}
}
