package server

import (
	"net/netip"

	"wayleave.dev/dns/schema"
)

// SetGuests replaces the networks of clients in addition to those of the settings.
func (s *Server) SetGuests(list []netip.Prefix) {
	c := schema.NewClients(list[:min(len(list), schema.MaxGuests)])
	s.guests.Store(&c)
}

// admits reports whether a client, an address without zone, is answered: if it is in a network of nodes or of their
// pods, or a known pod.
func (s *Server) admits(set *compiled, client netip.Addr) bool {
	if set.clients.Allowed(client) || s.callers.at(client) != nil {
		return true
	}
	guests := s.guests.Load()
	return guests != nil && guests.Allowed(client)
}
