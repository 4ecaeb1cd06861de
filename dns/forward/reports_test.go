package forward

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/dns/cache"
	"wayleave.dev/internal/dnstest"
	"wayleave.dev/internal/testnet"
)

// A denial that clients ask for without a pause ends when its time does, and so does a failure (coredns#3586, #7956,
// #3927); one SERVFAIL hides no good answer (#8003).
func TestReportsOfTheCache(t *testing.T) {
	t.Parallel()
	denies := func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		soa, err := dns.NewRR("example. 60 IN SOA ns.example. root.example. 1 60 60 60 60")
		if err == nil {
			m.Ns = append(m.Ns, soa)
		}
		_ = w.WriteMsg(m)
	}
	for what, tc := range map[string]struct {
		first dns.HandlerFunc
		want  string
	}{
		"#3586 a denial":            {denies, "NXDOMAIN:  +SOA"},
		"#3927 and #7956 a failure": {dnstest.Code(dns.RcodeServerFailure), "SERVFAIL"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := dnstest.NewServer(t, tc.first)
			f, clock := newForwarder(t, to(up))
			for range 20 { // half a second between queries
				if got := resolve(t, f, "a.example."); !strings.Contains(got, tc.want) {
					t.Fatalf("got %s, want %s", got, tc.want)
				}
				clock.Add(500 * time.Millisecond)
			}
			up.Become(dnstest.Tells("192.0.2.1", 300))
			asked := 0
			testnet.Eventually(t, 10*time.Second, func() error {
				asked++
				clock.Add(500 * time.Millisecond)
				if got := resolve(t, f, "a.example."); got != dnstest.TellsOne {
					return errors.New(got)
				}
				return nil
			})
			if asked > 150 {
				t.Errorf("the answer came after %d queries, 75 s", asked)
			}
		})
	}
	up := dnstest.NewServer(t, dnstest.Tells("192.0.2.1", 30))
	f, clock := newForwarder(t, to(up))
	dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
	up.Become(dnstest.Code(dns.RcodeServerFailure))
	clock.Add(40 * time.Second)
	for range 5 { // the failure stays in the cache for a second
		dnstest.ExpectText(t, resolve(t, f, "a.example."), dnstest.TellsOne)
		clock.Add(100 * time.Millisecond)
	}
	up.Become(dnstest.Tells("192.0.2.1", 30))
	clock.Add(cache.StaleRecheck + time.Second)
	testnet.Eventually(t, 10*time.Second, func() error {
		clock.Add(time.Second)
		if m, err := f.Forward(t.Context(), new(dns.Msg).SetQuestion("a.example.", dns.TypeA)); err != nil {
			return err
		} else if dnstest.Text(m) != dnstest.TellsOne {
			return errors.New(dnstest.Text(m))
		}
		return nil
	})
}
