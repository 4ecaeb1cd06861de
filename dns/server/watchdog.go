package server

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/dns/schema"
)

// The watchdog's times: a loop that should iterate and has not for a second's worth of checks is hung. A late check
// does not count: the complete process had no CPU, or was stopped.
const (
	lookEvery = 100 * time.Millisecond
	lookLate  = 3 * lookEvery
	hungLooks = int(time.Second / lookEvery)
)

// watch checks the loops until ctx ends, or until one hangs: then it calls hung once, which should end the process. Its
// sockets close with it, and queries go to another node's server until it is restarted.
func (s *Server) watch(ctx context.Context, hung func(schema.Socket)) {
	seen := map[*reader]*look{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		late := time.Since(last) > lookLate
		last = time.Now()
		if late {
			clear(seen)
			continue
		}
		next := make(map[*reader]*look, len(seen))
		for k, u := range s.udpSockets() {
			waits := u.waits()
			for _, r := range u.readers {
				l := seen[r]
				if l == nil {
					l = &look{}
				}
				next[r] = l
				if l.at(r, waits) >= hungLooks {
					hung(k)
					return
				}
			}
		}
		seen = next
	}
}

// look is the last observed state of a reader.
type look struct {
	turns uint64
	still int
}

// at returns for how many checks a reader has not iterated, although it is busy or queries wait.
func (l *look) at(r *reader, waits bool) int {
	turns := r.turns.Load()
	if turns != l.turns || (!r.busy.Load() && !waits) {
		l.turns, l.still = turns, 0
		return 0
	}
	l.still++
	return l.still
}

func (s *Server) udpSockets() map[schema.Socket]*udpSocket {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[schema.Socket]*udpSocket{}
	for k, d := range s.sockets {
		if u, ok := d.(*udpSocket); ok {
			out[k] = u
		}
	}
	return out
}

// waits reports whether a query waits to be read.
func (u *udpSocket) waits() bool {
	size := 0
	var inner error
	err := u.raw.Control(func(fd uintptr) { size, inner = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return errors.Join(err, inner) == nil && size > 0
}
