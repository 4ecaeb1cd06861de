package dnstest

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// Server is an upstream server on real sockets whose handler the test chooses, to misbehave like real servers.
type Server struct {
	Addr     netip.AddrPort
	UDP, TCP atomic.Int64 // queries by transport
	// Mu guards Questions, the queried names.
	Mu         sync.Mutex
	Questions  []string
	handle     dns.HandlerFunc
	servers    []*dns.Server
	packetConn net.PacketConn
}

// NewServer starts a server that ends with the test.
func NewServer(t *testing.T, handle dns.HandlerFunc) *Server {
	t.Helper()
	f := &Server{handle: handle}
	f.start(t, "127.0.0.1:0")
	t.Cleanup(f.Stop)
	return f
}

func (f *Server) start(t *testing.T, addr string) {
	t.Helper()
	var l net.Listener
	testnet.Eventually(t, 10*time.Second, func() (err error) {
		if l, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		if f.packetConn, err = net.ListenPacket("udp", l.Addr().String()); err != nil {
			l.Close()
		}
		return err
	})
	f.Addr = netip.MustParseAddrPort(l.Addr().String())
	f.servers = []*dns.Server{{Listener: l, Handler: f}, {PacketConn: f.packetConn, Handler: f}}
	for _, s := range f.servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
	}
}

// Stop ends the server.
func (f *Server) Stop() {
	for _, s := range f.servers {
		_ = s.Shutdown()
	}
	f.servers = nil
}

// ServeDNS implements dns.Handler.
func (f *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if w.RemoteAddr().Network() == "udp" {
		f.UDP.Add(1)
	} else {
		f.TCP.Add(1)
	}
	f.Mu.Lock()
	handle := f.handle
	f.Questions = append(f.Questions, q.Question[0].Name)
	f.Mu.Unlock()
	handle(w, q)
}

// Become changes the handler.
func (f *Server) Become(handle dns.HandlerFunc) {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.handle = handle
}

// Asked returns the number of queries received.
func (f *Server) Asked() int { return int(f.UDP.Load() + f.TCP.Load()) }

// Nameserver returns the server in the form of the settings.
func (f *Server) Nameserver() model.Nameserver { return model.Nameserver{Addr: f.Addr} }

// Tells answers any name with an address.
func Tells(addr string, ttl uint32) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(Told(q, addr, ttl)) }
}

// Told returns a reply with one address.
func Told(q *dns.Msg, addr string, ttl uint32) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET,
		Ttl: ttl}, A: net.IP(netip.MustParseAddr(addr).AsSlice())}}
	return m
}

// Silent answers no query.
func Silent(dns.ResponseWriter, *dns.Msg) {}

// Code answers with only a response code.
func Code(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
}
