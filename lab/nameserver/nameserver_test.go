package nameserver

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestAnswers(t *testing.T) {
	s, err := New(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		want  string // data of the answers
	}{
		{"google.com.", dns.TypeA, dns.RcodeSuccess, "198.51.100.10"},
		{"GooGle.Com.", dns.TypeA, dns.RcodeSuccess, "198.51.100.10"},
		{"db.example.com.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8:113::20"},
		{"v4only.example.com.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"alias.example.com.", dns.TypeA, dns.RcodeSuccess, "www.example.com. example.com. 203.0.113.10"},
		{"www.example.com.", dns.TypeCNAME, dns.RcodeSuccess, "example.com."},
		{"dangling.example.com.", dns.TypeA, dns.RcodeNameError, "nowhere.example.com."},
		{"google.com.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, ""},
		{".", dns.TypeA, dns.RcodeNameError, ""},
	} {
		reply := s.Answer(new(dns.Msg).SetQuestion(c.name, c.kind))
		var data []string
		for i, rr := range reply.Answer {
			if i == 0 && rr.Header().Name != c.name {
				t.Errorf("%s: answered as %s", c.name, rr.Header().Name)
			}
			data = append(data, rr.String()[len(rr.Header().String()):])
		}
		if reply.Rcode != c.rcode || strings.Join(data, " ") != c.want {
			t.Errorf("%s: got %s %q, want %s %q", c.name, dns.RcodeToString[reply.Rcode], data,
				dns.RcodeToString[c.rcode], c.want)
		}
		if negative := c.want == "" || c.rcode != dns.RcodeSuccess; negative != (len(reply.Ns) == 1) {
			t.Errorf("%s: authority %v", c.name, reply.Ns)
		}
	}
}

// lines is a log that a test can read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestOverTheWire(t *testing.T) {
	log := &lines{}
	s, err := New(log)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort("127.0.0.1:0")
	servers, err := s.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp := servers[0].PacketConn.LocalAddr().String(), servers[1].Listener.Addr().(*net.TCPAddr).String()
	for _, server := range servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() { _ = server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	query := new(dns.Msg).SetQuestion("huge.example.com.", dns.TypeA)
	for _, c := range []struct {
		net, to   string
		truncated bool
	}{{"udp", udp, true}, {"tcp", tcp, false}} {
		client := &dns.Client{Net: c.net, Timeout: 5 * time.Second}
		reply, _, err := client.Exchange(query, c.to)
		if err != nil {
			t.Fatal(err)
		}
		if reply.Truncated != c.truncated || !c.truncated && len(reply.Answer) != 600 {
			t.Errorf("%s: truncated %t, %d answers", c.net, reply.Truncated, len(reply.Answer))
		}
		if !strings.Contains(log.String(), "huge.example.com. A "+c.net+"\n") {
			t.Errorf("%s: not in the log: %s", c.net, log)
		}
	}
}
