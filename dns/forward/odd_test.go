package forward

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/odddns"
	"wayleave.dev/model"
)

// oddWants are the answers that are not the usual ones, by habit and the first label of the name; "" is all names.
var oddWants = map[string]map[string]string{
	"question-missing": {"": "error: "}, "question-other-name": {"": "error: "}, "question-other-type": {"": "error: "},
	"question-twice": {"": "error: "},
	"id-other":       {"": "error: "}, "query-back": {"": "error: "}, "port-other": {"": "error: "},
	"silent":  {"": "error: "},
	"refused": {"": "error: "}, "refused-bare": {"": "error: "}, "servfail": {"": "error: "},
	"formerr": {"": "error: "}, "notimp": {"": "error: "},
	"referral":                   {"": "NOERROR:  +NS"},
	"cname-alone-target-refused": {"alias": "NOERROR: CNAME real.odd.test."},
	"cut-empty-no-tcp":           {"long": "NOERROR: ", "longer": "NOERROR: ", "longest": "NOERROR: "},
}

// oddLacks are what servers are known to lack after a few queries.
var oddLacks = map[string]string{
	"edns-formerr": "edns0", "edns-formerr-bare": "edns0", "edns-notimp": "edns0", "edns-notimp-bare": "edns0",
	"edns-servfail": "edns0", "edns-refused": "edns0",
	"edns-silent": "edns0", "edns-badvers": "edns0", "edns-junk": "edns0",
	"capitals-denied": "letters", "capitals-denied-no-tcp": "letters tcp", "capitals-empty": "letters",
	"capitals-servfail": "letters", "capitals-refused-no-tcp": "letters tcp",
	"capitals-silent": "letters", "capitals-silent-no-tcp": "letters tcp", "capitals-denied-with-soa": "letters tcp",
	"lower": "letters", "lower-no-tcp": "letters tcp", "lower-no-tcp-formerr": "edns0 letters tcp",
	"edns-formerr-capitals-denied": "edns0 letters tcp",
	"edns-or-capitals-silent":      "edns0 letters tcp",
	"cut-no-tcp":                   "tcp", "cut-tcp-silent": "tcp", "cut-empty-no-tcp": "tcp", "usual-no-tcp": "tcp",
}

// Servers with the habits of old and broken ones are answered for like all others; what they lack is known after a
// few queries, and costs none from then on.
func TestOddServers(t *testing.T) {
	t.Parallel()
	for _, h := range odddns.Habits() {
		t.Run(h.Name, func(t *testing.T) {
			t.Parallel()
			s, at := dnstest.StartOdd(t, h)
			f, _ := newForwarder(t, schema.Forwarding{Upstreams: []model.Nameserver{at}})
			names := []string{"first", "missing", "alias", "long", "longer", "longest", "second", "third", "fourth"}
			if strings.HasPrefix(oddWants[h.Name][""], "error") || h.Delay > 0 {
				names = []string{"first", "long"}
			}
			for _, name := range names {
				want := map[string]string{"missing": "NXDOMAIN: ",
					"alias": "NOERROR: A 192.0.2.53, CNAME real.odd.test.", "long": "A 192.0.2.72",
					"longer": "A 192.0.2.72", "longest": "A 192.0.2.72"}[name]
				for _, n := range []string{"", name} {
					if w, ok := oddWants[h.Name][n]; ok {
						want = w
					}
				}
				if want == "" {
					want = "NOERROR: A 192.0.2.53"
				}
				if got := resolve(t, f, name+".odd.test."); !strings.Contains(got, want) ||
					strings.HasPrefix(want, "NOERROR") && got != want {
					t.Errorf("%s: got %s, want %s", name, got, want)
				}
			}
			// each with EDNS0, by chance; TCP after UDP takes too long
			if h.Name == "every-second-lost" || h.Name == "slower" {
				return
			}
			lacks := f.Lacks()[at.String()]
			slices.Sort(lacks)
			if got := strings.Join(lacks, " "); got != oddLacks[h.Name] &&
				!(h.NoTCP && got == strings.TrimSpace(oddLacks[h.Name]+" tcp")) {
				t.Errorf("it is known to lack %q, want %q", got, oddLacks[h.Name])
			}
			if oddLacks[h.Name] != "" {
				before := len(s.Queries())
				dnstest.ExpectText(t, resolve(t, f, "last.odd.test."), "NOERROR: A 192.0.2.53")
				if n := len(s.Queries()) - before; n != 1 {
					t.Errorf("it is asked %d times for a name when all is known", n)
				}
			}
		})
	}
}

// Several servers of one kind: no habit makes a list of servers fail where one of them would not.
func TestSeveralOddServers(t *testing.T) {
	t.Parallel()
	for _, h := range odddns.Habits() {
		if oddWants[h.Name][""] != "" || h.Name == "every-second-lost" { // each server loses the first
			continue
		}
		t.Run(h.Name, func(t *testing.T) {
			t.Parallel()
			var s schema.Forwarding
			for range 4 {
				_, at := dnstest.StartOdd(t, h)
				s.Upstreams = append(s.Upstreams, at)
			}
			f, _ := newForwarder(t, s)
			dnstest.ExpectText(t, resolve(t, f, "first.odd.test."), "NOERROR: A 192.0.2.53")
		})
	}
}

// A referral, as of a server that is not the right one, is taken only where no other server has an answer.
func TestAReferralIsTheLastResort(t *testing.T) {
	t.Parallel()
	lame := odddns.Habits()[slices.IndexFunc(odddns.Habits(),
		func(h odddns.Habit) bool { return h.Name == "referral" })]
	_, first := dnstest.StartOdd(t, lame)
	_, second := dnstest.StartOdd(t, odddns.Habits()[0])
	f, _ := newForwarder(t, schema.Forwarding{Upstreams: []model.Nameserver{first, second}})
	dnstest.ExpectText(t, resolve(t, f, "a.odd.test."), "NOERROR: A 192.0.2.53")
}

// A forged answer is not taken where a server is asked in plain letters to see whether it can do better so, nor does
// one forged answer have letters left out from then on.
func TestPlainLettersNeedProof(t *testing.T) {
	t.Parallel()
	forged := func(q odddns.Query) [][]byte {
		m := dnstest.Told(q.Msg, "192.0.2.66", 300)
		b, _ := m.Pack()
		return [][]byte{b}
	}
	capital := func(q odddns.Query) bool { return q.Question[0].Name != strings.ToLower(q.Question[0].Name) }
	honest := odddns.Habits()[0].Reply
	for _, noTCP := range []bool{false, true} {
		for what, reply := range map[string]func(q odddns.Query) [][]byte{
			"a name that is not there": func(q odddns.Query) [][]byte {
				if q.Count == 1 && !q.TCP && !capital(q) { // faster than the server
					return forged(q)
				}
				return honest(q)
			},
			"letters": func(q odddns.Query) [][]byte {
				if q.Count == 0 {
					low := q.Copy()
					low.Question[0].Name = strings.ToLower(low.Question[0].Name)
					return forged(odddns.Query{Msg: low})
				}
				return honest(q)
			},
		} {
			t.Run(fmt.Sprint(what, ", TCP closed ", noTCP), func(t *testing.T) {
				t.Parallel()
				s, at := dnstest.StartOdd(t, odddns.Habit{NoTCP: noTCP, Reply: reply})
				f, _ := newForwarder(t, schema.Forwarding{Upstreams: []model.Nameserver{at}})
				dnstest.ExpectText(t, resolve(t, f, "missing.odd.test."), "NXDOMAIN")
				if slices.Contains(f.Lacks()[at.String()], "letters") {
					t.Error("one forged answer has letters left out")
				}
				if n := len(s.Queries()); n < 2 {
					t.Errorf("%d queries: nothing was forged", n)
				}
			})
		}
	}
}

// The queries that prove a lack of letters each come from a port of their own, with an id of their own.
func TestProofsAreIndependent(t *testing.T) {
	t.Parallel()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ports, ids := map[string]bool{}, map[uint16]bool{}
	n, done := 0, make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			size, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if q.Unpack(buf[:size]) != nil {
				continue
			}
			n++
			ports[from.String()], ids[q.Id] = true, true
			q.Question[0].Name = strings.ToLower(q.Question[0].Name)
			b, _ := dnstest.Told(q, "192.0.2.1", 300).Pack()
			_, _ = p.WriteTo(b, from)
		}
	}()
	f, _ := newForwarder(t, schema.Forwarding{Upstreams: []model.Nameserver{
		{Addr: netip.MustParseAddrPort(p.LocalAddr().String())}}})
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	p.Close()
	<-done
	if n != letterProofs || len(ports) != n || len(ids) < n-1 { // two ids may be the same by chance
		t.Errorf("%d queries from %d ports with %d ids, want %d", n, len(ports), len(ids), letterProofs)
	}
}

// What a server lacks is forgotten after a time, and what is known of names is bounded.
func TestLacksAreForgotten(t *testing.T) {
	t.Parallel()
	var a abilities
	now := time.Now()
	for range lackProofs {
		a.prove(schema.LackEDNS, lackProofs, now)
	}
	a.prove(schema.LackTCP, 1, now)
	if !a.lacks(schema.LackEDNS, now.Add(lackFor-time.Second)) || a.lacks(schema.LackEDNS, now.Add(lackFor)) ||
		!a.lacks(schema.LackTCP, now) || a.lacks(schema.LackTCP, now.Add(lackTCPFor)) {
		t.Error("a lack is believed too long, or not long enough")
	}
	a.heardEDNS(true, now)
	if a.lacks(schema.LackEDNS, now) {
		t.Error("an answer does not end a lack")
	}
	for i := range 10 * knownNames {
		a.heardLetters(fmt.Sprintf("n%d.example.", i), now)
	}
	if len(a.names) > knownNames+5 {
		t.Errorf("%d names are kept", len(a.names))
	}
	if !a.knowsLetters("example.", now) || a.knowsLetters("example.", now.Add(lackFor)) {
		t.Error("the zone of names is not known, or too long")
	}
}

// Servers of the setting plainLetters are asked in small letters from the first query on, until it is changed.
func TestPlainLettersBySetting(t *testing.T) {
	t.Parallel()
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 300))
	settings := to(up)
	settings.PlainLetters = []netip.AddrPort{up.Addr}
	f, _ := newForwarder(t, settings)
	dnstest.ExpectText(t, resolve(t, f, "abcdefghijkl.example."), dnstest.TellsOne)
	settings.PlainLetters = nil
	f.Configure(settings)
	dnstest.ExpectText(t, resolve(t, f, "mnopqrstuvwx.example."), dnstest.TellsOne)
	up.Mu.Lock()
	defer up.Mu.Unlock()
	if q := up.Questions; len(q) != 2 || q[0] != "abcdefghijkl.example." || q[1] == strings.ToLower(q[1]) {
		t.Errorf("asked for %v", q)
	}
}
