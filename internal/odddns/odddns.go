// Package odddns contains DNS servers with the habits of old and broken ones, for tests: they were reported of
// appliances, home routers, load balancers and filters. Every server has the same names:
//
//	missing….   no such name
//	alias….     a CNAME to real. of the same domain
//	long….      100 addresses
//	any other   A 192.0.2.53, AAAA 2001:db8::53, TXT
package odddns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Query is what a server gets.
type Query struct {
	*dns.Msg
	// TCP means that it was received by TCP.
	TCP bool
	// Count is the number of earlier queries.
	Count int
}

// edns reports whether there is an OPT record.
func (q Query) edns() bool { return q.IsEdns0() != nil }

func (q Query) name() string { return q.Question[0].Name }

// capital reports whether the name has a capital letter.
func (q Query) capital() bool { return q.name() != strings.ToLower(q.name()) }

// Habit is how a server answers.
type Habit struct {
	Name string
	// NoTCP refuses connections.
	NoTCP bool
	// Reply returns the messages to send; none for silence.
	Reply func(q Query) [][]byte
	// Delay is the time before each answer.
	Delay time.Duration
	// OtherPort sends datagrams from another port than the queried one.
	OtherPort bool
}

// Server applies a habit until Close.
type Server struct {
	Habit
	udp   net.PacketConn
	other net.PacketConn
	tcp   net.Listener
	wg    sync.WaitGroup

	mu      sync.Mutex
	queries []Query
	conns   map[net.Conn]bool
}

// Start serves a habit. tcp and other may be nil; the server closes all three.
func Start(h Habit, udp, other net.PacketConn, tcp net.Listener) *Server {
	s := &Server{Habit: h, udp: udp, other: other, tcp: tcp, conns: map[net.Conn]bool{}}
	s.wg.Go(s.datagrams)
	if tcp != nil {
		s.wg.Go(s.streams)
	}
	return s
}

// Close ends the server.
func (s *Server) Close() {
	s.udp.Close()
	if s.other != nil {
		s.other.Close()
	}
	if s.tcp != nil {
		s.tcp.Close()
	}
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Queries returns those received so far.
func (s *Server) Queries() []Query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Query(nil), s.queries...)
}

// answer returns the habit's answer to a query.
func (s *Server) answer(raw []byte, tcp bool) [][]byte {
	m := new(dns.Msg)
	if m.Unpack(raw) != nil || m.Response || len(m.Question) != 1 {
		return nil
	}
	s.mu.Lock()
	q := Query{m, tcp, len(s.queries)}
	s.queries = append(s.queries, q)
	s.mu.Unlock()
	time.Sleep(s.Delay)
	return s.Reply(q)
}

func (s *Server) datagrams() {
	for {
		buf := make([]byte, 4096)
		n, from, err := s.udp.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		s.wg.Go(func() {
			out := s.udp
			if s.OtherPort && s.other != nil {
				out = s.other
			}
			for _, b := range s.answer(buf[:n], false) {
				_, _ = out.WriteTo(b, from) // the socket may be closed
			}
		})
	}
}

func (s *Server) streams() {
	for {
		c, err := s.tcp.Accept()
		if err != nil {
			return
		}
		if s.NoTCP {
			c.Close()
			continue
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			}()
			s.stream(c)
		})
	}
}

func (s *Server) stream(c net.Conn) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		raw := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(c, raw); err != nil {
			return
		}
		for _, b := range s.answer(raw, true) {
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
				return
			}
		}
	}
}

const ttl = 20

// records parses records.
func records(format string, args ...any) dns.RR {
	rr, err := dns.NewRR(fmt.Sprintf(format, args...))
	if err != nil {
		panic(err) // a constant of this file
	}
	return rr
}

// base returns the answer of a server without odd habits.
func base(q Query) *dns.Msg {
	m := new(dns.Msg).SetReply(q.Msg)
	m.RecursionAvailable, m.Compress = true, true
	name, low := q.name(), strings.ToLower(q.name())
	if strings.HasPrefix(low, "missing") {
		m.Rcode = dns.RcodeNameError
		return m
	}
	if strings.HasPrefix(low, "alias") {
		_, domain, _ := strings.Cut(low, ".")
		target := "real." + domain
		m.Answer = append(m.Answer, records("%s %d IN CNAME %s", name, ttl, target))
		name = target
	}
	switch q.Question[0].Qtype {
	case dns.TypeA:
		n := 1
		if strings.HasPrefix(low, "long") {
			n = 100
		}
		for i := range n {
			m.Answer = append(m.Answer, records("%s %d IN A 192.0.2.%d", name, ttl, 53+i))
		}
	case dns.TypeAAAA:
		m.Answer = append(m.Answer, records("%s %d IN AAAA 2001:db8::53", name, ttl))
	case dns.TypeTXT:
		m.Answer = append(m.Answer, records("%s %d IN TXT \"odd\"", name, ttl))
	}
	return m
}

// sized truncates an answer to the size that the query accepts by UDP.
func sized(q Query, m *dns.Msg) *dns.Msg {
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
	}
	if !q.TCP {
		m.Truncate(size)
	}
	return m
}

func pack(m *dns.Msg) [][]byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return [][]byte{b}
}

// usual returns the answer of a server without odd habits, as bytes.
func usual(q Query) [][]byte {
	m := base(q)
	if q.edns() {
		m.SetEdns0(1232, false)
	}
	return pack(sized(q, m))
}

// code returns an error, or an empty answer.
func code(q Query, rcode int) [][]byte { return pack(new(dns.Msg).SetRcode(q.Msg, rcode)) }

// bare returns an error that consists of a header alone.
func bare(q Query, rcode int) [][]byte {
	m := new(dns.Msg).SetRcode(q.Msg, rcode)
	m.Question = nil
	return pack(m)
}
