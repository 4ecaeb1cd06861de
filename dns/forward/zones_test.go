package forward

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
)

// resolver is an upstream server that resolves all names well, except for those below evil.test., whose zone belongs to
// a pod: there it does what evil says.
func resolver(t *testing.T, evil func(w dns.ResponseWriter, q *dns.Msg, count int)) *dnstest.Server {
	var mu sync.Mutex
	counts := map[string]int{}
	return dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		name := strings.ToLower(q.Question[0].Name)
		if !strings.HasSuffix(name, "evil.test.") {
			_ = w.WriteMsg(dnstest.Told(q, "192.0.2.1", 300))
			return
		}
		mu.Lock()
		counts[name]++
		n := counts[name]
		mu.Unlock()
		evil(w, q, n)
	})
}

// A pod can own a zone, and ask for names in it whose answers look as if the upstream server lacked an ability. That
// takes the ability from no other pod's queries.
func TestAZoneTakesNoAbilityFromItsResolver(t *testing.T) {
	t.Parallel()
	good := func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(dnstest.Told(q, "192.0.2.66", 0)) }
	overTCP := func(w dns.ResponseWriter) bool { return w.RemoteAddr().Network() == "tcp" }
	// malformed cannot be parsed: the record's length exceeds the message.
	malformed := func(w dns.ResponseWriter, q *dns.Msg) {
		b, _ := dnstest.Told(q, "192.0.2.66", 0).Pack()
		b[len(b)-5] = 200
		_, _ = w.Write(b)
	}
	for what, evil := range map[string]func(w dns.ResponseWriter, q *dns.Msg, count int){
		"TCP is not answered": func(w dns.ResponseWriter, q *dns.Msg, _ int) {
			if overTCP(w) {
				return
			}
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			_ = w.WriteMsg(m)
		},
		"TCP is closed after the query": func(w dns.ResponseWriter, q *dns.Msg, _ int) {
			if overTCP(w) {
				_ = w.Close()
				return
			}
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			_ = w.WriteMsg(m)
		},
		"EDNS0 makes answers malformed": func(w dns.ResponseWriter, q *dns.Msg, _ int) {
			if q.IsEdns0() != nil {
				malformed(w, q)
				return
			}
			good(w, q)
		},
		"EDNS0 makes errors": func(w dns.ResponseWriter, q *dns.Msg, _ int) {
			if q.IsEdns0() != nil {
				_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
				return
			}
			good(w, q)
		},
		"capitals are denied": func(w dns.ResponseWriter, q *dns.Msg, _ int) {
			if q.Question[0].Name != strings.ToLower(q.Question[0].Name) {
				_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
				return
			}
			good(w, q)
		},
		"capitals are not answered": func(w dns.ResponseWriter, q *dns.Msg, _ int) {
			if q.Question[0].Name == strings.ToLower(q.Question[0].Name) {
				good(w, q)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := resolver(t, evil)
			f, _ := newForwarder(t, schema.Forwarding{Upstreams: to(up).Upstreams})
			dnstest.ExpectText(t, resolve(t, f, "neighbour.example."), dnstest.TellsOne)
			for _, name := range []string{"a.evil.test.", "b.evil.test.", "c.evil.test.", "d.evil.test."} {
				resolve(t, f, name)
			}
			if lacks := f.Lacks()[up.Addr.String()]; len(lacks) > 0 {
				t.Errorf("a pod's zone makes the server of all pods lack %q", lacks)
			}
		})
	}
}

// A server whose TCP port accepts connections and answers nothing lacks TCP, also if it is asked about one zone only.
func TestASilentTCPPortIsALack(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if w.RemoteAddr().Network() == "tcp" {
			return
		}
		m := new(dns.Msg).SetReply(q)
		m.Truncated = true
		_ = w.WriteMsg(m)
	})
	f, _ := newForwarder(t, to(up))
	for _, name := range []string{"a.evil.test.", "b.evil.test."} {
		resolve(t, f, name)
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		if lacks := f.Lacks()[up.Addr.String()]; len(lacks) != 1 || lacks[0] != "tcp" {
			return fmt.Errorf("the server lacks %q, want TCP", lacks)
		}
		return nil
	})
}
