// Package nameserver is the upstream DNS server of a lab's nodes: a few fixed names with addresses reserved for
// documentation (RFC 5737, RFC 3849), NXDOMAIN for all others, and a log line for every query, so that a test can count
// them. It queries no other server.
package nameserver

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// zoneText is the server's zone. long.example.com does not fit into 512 octets, and huge.example.com into no UDP packet
// of usual size.
const zoneText = `
google.com.          300 IN A     198.51.100.10
google.com.          300 IN AAAA  2001:db8:100::10
google.com.          300 IN MX    10 smtp.google.com.
www.google.com.      300 IN A     198.51.100.11
www.google.com.      300 IN AAAA  2001:db8:100::11
smtp.google.com.     300 IN A     198.51.100.12
kubernetes.io.       300 IN A     198.51.100.20
example.com.         300 IN A     203.0.113.10
example.com.         300 IN AAAA  2001:db8:113::10
example.com.         300 IN TXT   "v=spf1 -all"
www.example.com.     300 IN CNAME example.com.
alias.example.com.   300 IN CNAME www.example.com.
db.example.com.      300 IN A     203.0.113.20
db.example.com.      300 IN AAAA  2001:db8:113::20
foo.example.com.     300 IN A     203.0.113.30
bar.example.com.     300 IN A     203.0.113.31
v4only.example.com.  300 IN A     203.0.113.40
v6only.example.com.  300 IN AAAA  2001:db8:113::40
short.example.com.   1   IN A     203.0.113.50
dangling.example.com. 300 IN CNAME nowhere.example.com.
_http._tcp.example.com. 300 IN SRV 0 0 80 www.example.com.
10.113.0.203.in-addr.arpa. 300 IN PTR example.com.
10.100.51.198.in-addr.arpa. 300 IN PTR google.com.
`

const (
	soaText  = " 60 IN SOA ns.example.com. hostmaster.example.com. 1 3600 600 86400 60"
	maxChain = 8 // CNAMEs followed within one answer
)

// Server answers from a table that never changes. It is safe for concurrent
// use.
type Server struct {
	records map[string][]dns.RR // by lower-case name

	mu  sync.Mutex
	log io.Writer
}

// New returns a server that writes "time client name type protocol" for each query to log.
func New(log io.Writer) (*Server, error) {
	s := &Server{records: map[string][]dns.RR{}, log: log}
	text := zoneText + many("long.example.com.", 60) + many("huge.example.com.", 600)
	parser := dns.NewZoneParser(strings.NewReader(text), ".", "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		name := rr.Header().Name
		s.records[name] = append(s.records[name], rr)
	}
	if err := parser.Err(); err != nil {
		return nil, fmt.Errorf("nameserver: %w", err)
	}
	return s, nil
}

// many gives a name n addresses.
func many(name string, n int) string {
	var text strings.Builder
	addr := netip.MustParseAddr("203.0.113.0")
	for i := range n {
		b := addr.As4()
		b[2], b[3] = 113-byte(i/256), byte(i)
		fmt.Fprintf(&text, "%s 300 IN A %s\n", name, netip.AddrFrom4(b))
	}
	return text.String()
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := s.Answer(query)
	if len(query.Question) == 1 {
		s.note(w.RemoteAddr(), query.Question[0])
	}
	if w.LocalAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		reply.Truncate(min(size, 1232))
	}
	_ = w.WriteMsg(reply) // the client repeats the query
}

// Answer answers one query.
func (s *Server) Answer(query *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative, reply.RecursionAvailable = true, true
	if opt := query.IsEdns0(); opt != nil {
		reply.SetEdns0(1232, opt.Do())
	}
	if len(query.Question) != 1 {
		return reply.SetRcode(query, dns.RcodeFormatError)
	}
	question := query.Question[0]
	name := strings.ToLower(question.Name)
	for range maxChain {
		records, known := s.records[name]
		if !known {
			reply.Rcode = dns.RcodeNameError
		}
		next := ""
		for _, rr := range records {
			alias, isAlias := rr.(*dns.CNAME)
			if rr.Header().Rrtype != question.Qtype && !isAlias {
				continue
			}
			rr = dns.Copy(rr)
			if len(reply.Answer) == 0 || rr.Header().Name == strings.ToLower(question.Name) {
				rr.Header().Name = question.Name // as queried
			}
			reply.Answer = append(reply.Answer, rr)
			if isAlias && question.Qtype != dns.TypeCNAME {
				next = alias.Target
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	if len(reply.Answer) == 0 || reply.Rcode == dns.RcodeNameError {
		if soa, err := dns.NewRR(parentOf(name) + soaText); err == nil {
			reply.Ns = []dns.RR{soa}
		}
	}
	return reply
}

// parentOf returns the last label: the zone in whose name denials are sent.
func parentOf(name string) string {
	labels := dns.SplitDomainName(name)
	if len(labels) == 0 {
		return "."
	}
	return dns.Fqdn(labels[len(labels)-1])
}

func (s *Server) note(client net.Addr, q dns.Question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.log, "%s %s %s %s %s\n", time.Now().UTC().Format(time.RFC3339Nano), client, q.Name,
		dns.TypeToString[q.Qtype], client.Network())
}

// Listen opens the server's sockets on an address, UDP and TCP. It must be
// called on a thread that is in the wanted network namespace.
func (s *Server) Listen(addr netip.AddrPort) ([]*dns.Server, error) {
	packets, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("nameserver: %w", err)
	}
	listener, err := net.Listen("tcp", addr.String())
	if err != nil {
		packets.Close()
		return nil, fmt.Errorf("nameserver: %w", err)
	}
	return []*dns.Server{{PacketConn: packets, Handler: s}, {Listener: listener, Handler: s}}, nil
}
