package server

import "net/netip"

// Serves reports whether a listening socket has the address and port.
func (s *Server) Serves(a netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.listeners {
		if k.Addr == a {
			return true
		}
	}
	return false
}
