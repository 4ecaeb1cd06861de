package server

import (
	"net/netip"
	"sync"
)

// counts bound connections in all and for each client.
type counts struct {
	mu     sync.Mutex
	all    int
	client map[netip.Addr]int
}

// whose is what a client is counted by: an address, or the /64 of an IPv6 one, which is
// one host's.
func whose(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// enter counts a connection; false when most are there.
func (c *counts) enter(most int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if most > 0 && c.all >= most {
		return false
	}
	c.all++
	return true
}

// leave takes it back.
func (c *counts) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
}

// enterClient counts a connection of a client; false when it has most of them.
func (c *counts) enterClient(a netip.Addr, most int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if most > 0 && c.client[a] >= most {
		return false
	}
	if c.client == nil {
		c.client = map[netip.Addr]int{}
	}
	c.client[a]++
	return true
}

// total is the number of all.
func (c *counts) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}

// of is the number of a client's connections.
func (c *counts) of(a netip.Addr) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client[a]
}

// leaveClient takes it back.
func (c *counts) leaveClient(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client[a]--; c.client[a] <= 0 {
		delete(c.client, a)
	}
}
