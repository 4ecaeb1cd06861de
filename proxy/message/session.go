package message

import (
	"crypto/x509"
	"sync"
)

// Session is the result of a handshake. It belongs to one connection; its methods may be called concurrently.
type Session struct {
	// ServerName is the name that the client requested (SNI), as sent.
	ServerName string
	// Certificates are those that the client presented, its own first; only the possession of its key was verified.
	Certificates []*x509.Certificate

	mu       sync.Mutex
	verified map[any]error
}

// maxVerified bounds the results that a Session caches.
const maxVerified = 8

// Verify returns the result of verify for the key by; verify is called once per key.
func (s *Session) Verify(by any, verify func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err, known := s.verified[by]; known {
		return err
	}
	if s.verified == nil || len(s.verified) >= maxVerified {
		s.verified = map[any]error{}
	}
	err := verify()
	s.verified[by] = err
	return err
}
