package process

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/schema"
)

// Settings of the agent decide from which address the process asks an authentication server,
// and where; a change is in force for the next question.
func TestTheProcessAsksWhereItMay(t *testing.T) {
	r := newRig(t)
	var from atomic.Pointer[string]
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		host, _, _ := net.SplitHostPort(q.RemoteAddr)
		from.Store(&host)
	}))
	t.Cleanup(server.Close)
	loopback, own := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		[]netip.Addr{netip.MustParseAddr("127.0.0.9")}
	h := route("app1.example.com", "d/app1:80", "")
	h.Paths[0].Options = &schema.Options{AuthURL: &schema.AuthURL{URL: server.URL + "/"}}
	r.feed.Configure(schema.Settings{Sources: own, AskAllowed: loopback})
	r.up(map[string]schema.Host{"app1.example.com": h}, map[string]schema.Backend{"d/app1:80": r.backend("d/app1:80",
		says("app"))}, nil)
	c := r.client(false)
	for _, tc := range []struct {
		name     string
		settings schema.Settings
		status   int
		from     string
	}{
		{"from the proxy's address", schema.Settings{Sources: own, AskAllowed: loopback}, 200, "127.0.0.9"},
		{"a node is not asked", schema.Settings{Sources: own}, 500, ""},
		{"without an address nobody is asked", schema.Settings{AskAllowed: loopback}, 500, ""},
		{"another program's pod network", schema.Settings{AskFromNode: true, AskAllowed: loopback}, 200, "127.0.0.1"},
		{"again", schema.Settings{Sources: own, AskAllowed: loopback}, 200, "127.0.0.9"},
	} {
		r.feed.Configure(tc.settings)
		testnet.Eventually(t, 10*time.Second, func() error {
			from.Store(nil)
			status, _, err := fetch(c, "http://app1.example.com/")
			at := ""
			if p := from.Load(); p != nil {
				at = *p
			}
			if err != nil || status != tc.status || at != tc.from {
				return fmt.Errorf("%s: status %d, asked from %q, %v; want %d, %q", tc.name, status, at, err,
					tc.status, tc.from)
			}
			return nil
		})
	}
}
