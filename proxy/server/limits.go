package server

import (
	"net/netip"
	"sync"
)

// counts bounds connections in total and per client.
type counts struct {
	mu     sync.Mutex
	all    int
	client map[netip.Addr]int
}

// whose returns what a client is counted by: an address, or the /64 of an IPv6 address, which one host controls.
func whose(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// enter counts a connection; false at the limit.
func (c *counts) enter(most int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if most > 0 && c.all >= most {
		return false
	}
	c.all++
	return true
}

// leave removes it from the count.
func (c *counts) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
}

// enterClient counts a connection of a client; false at the client's limit.
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

// total returns the number of all connections.
func (c *counts) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}

// of returns the number of a client's connections.
func (c *counts) of(a netip.Addr) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client[a]
}

// leaveClient removes it from the count.
func (c *counts) leaveClient(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client[a]--; c.client[a] <= 0 {
		delete(c.client, a)
	}
}
