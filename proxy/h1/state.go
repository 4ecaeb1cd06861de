package h1

import (
	"sync/atomic"
	"time"
)

// Phase is what a connection waits for.
type Phase int32

// The phases. A connection begins with Waiting.
const (
	// Waiting is for a PROXY header, a handshake, or the rest of a request's head.
	Waiting Phase = iota
	// Idle is the phase between two requests.
	Idle
	// Busy means that a request waits for the proxy or an endpoint.
	Busy
	// Owing means that the client must send more of a request's body, or read more of the response.
	Owing
	// Evicted means that the connection was closed to make room for another one.
	Evicted
)

// State is a connection's phase and when it began. Its methods may be called concurrently.
type State struct {
	crowd  *Crowd
	phase  atomic.Int32
	since  atomic.Int64 // Unix nanoseconds
	credit atomic.Int64 // progress of an Owing client since then, in bytes
}

// Crowd counts waiting connections. If there are too many, it calls Full, which evicts some.
type Crowd struct {
	waiting atomic.Int64
	// Most is the limit of waiting connections; 0 for no limit. Full is called above it.
	Most atomic.Int64
	Full func()
}

// Waiting returns the number of waiting connections.
func (c *Crowd) Waiting() int { return int(c.waiting.Load()) }

// Start initializes the state of a new connection, which waits. crowd may be nil. It must return before another
// goroutine can evict the connection: a connection that is evicted before it is counted would be counted forever. It
// does not call Full; Relieve does.
func (s *State) Start(crowd *Crowd) {
	s.crowd = crowd
	s.since.Store(time.Now().UnixNano())
	if crowd != nil {
		crowd.waiting.Add(1)
	}
}

// Relieve calls Full if too many connections wait.
func (c *Crowd) Relieve() {
	if most := c.Most.Load(); most > 0 && c.waiting.Load() > most && c.Full != nil {
		c.Full()
	}
}

// Look returns the phase, and when it began.
func (s *State) Look() (Phase, time.Time) {
	return Phase(s.phase.Load()), time.Unix(0, s.since.Load())
}

// To changes the phase; false if the connection was evicted meanwhile and must end.
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

// Evict ends the connection if it is in phase p; false if it is in another one by now. The caller closes the
// connection.
func (s *State) Evict(p Phase) bool {
	if p == Evicted || !s.phase.CompareAndSwap(int32(p), int32(Evicted)) {
		return false
	}
	if p == Waiting && s.crowd != nil {
		s.crowd.waiting.Add(-1)
	}
	return true
}

// End marks the end of the connection.
func (s *State) End() { s.To(Evicted) }

// owingCredit is the progress in bytes that restarts the time of an Owing client.
const owingCredit = 16 << 10

// Owes records that the client must act, after n bytes of progress.
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
