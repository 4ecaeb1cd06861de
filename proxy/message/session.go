package message

import (
	"crypto/x509"
	"sync"
)

// Session is what a handshake said. It is of one connection; its methods may be called
// concurrently.
type Session struct {
	// ServerName is the name that the client asked for (SNI), as it sent it.
	ServerName string
	// Certificates are those that the client showed, its own first; nothing was verified but that
	// it has the key.
	Certificates []*x509.Certificate

	mu       sync.Mutex
	verified map[any]error
}

// maxVerified bounds what a Session remembers.
const maxVerified = 8

// Verify is the outcome of verify for what by stands for, which is called once.
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
