package server

import "net/netip"

// Serves says whether the address and port are those of a listening socket.
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
