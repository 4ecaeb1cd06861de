package interop

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"wayleave.dev/proxy/schema"
)

// answered are the cases in which h2spec expects another refusal than Wayleave's, with the reason. None of them reaches
// an endpoint.
func answered(encrypted bool) map[string]string {
	out := map[string]string{
		"http2/6.5.3/1":   "a SETTINGS frame that names a setting twice closes the connection",
		"http2/8.1.2.2/1": "400 instead of a reset",
		"http2/8.1.2.2/2": "400 instead of a reset",
	}
	if !encrypted {
		out["http2/3.5/2"] = "an invalid preface is treated as HTTP/1.1, and gets 400"
	}
	return out
}

// h2spec, a test suite for HTTP/2 servers (RFC 7540, RFC 7541), finds nothing unexpected.
func TestH2Spec(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "hello\n")
		}))
	}()
	cert, _ := pair(t, "h2spec.example.com")
	plain, encrypted := serve(t, schema.Host{Certificate: cert.Key,
		Paths: []schema.Path{{Kind: schema.Prefix, Path: "/", Backend: "b"}}},
		schema.Backend{Key: "b", Endpoints: []schema.Endpoint{{Addr: netip.MustParseAddrPort(l.Addr().String())}}},
		cert)
	for _, c := range []config.Config{
		{Host: "127.0.0.1", Port: int(plain.Port()), Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000},
		{Host: "127.0.0.1", Port: int(encrypted.Port()), Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000,
			TLS: true, Insecure: true},
	} {
		known := answered(c.TLS)
		passed := 0
		for _, s := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
			s.Test(&c)
			passed += s.PassedCount
			failures(s, func(id string, r *spec.TestResult) {
				if known[id] == "" {
					t.Errorf("TLS %v: %s %s: %v", c.TLS, id, r.TestCase.Desc, r.Error)
				}
				delete(known, id)
			})
		}
		t.Logf("TLS %v: %d cases passed", c.TLS, passed)
		if passed < 140 {
			t.Errorf("TLS %v: only %d cases passed", c.TLS, passed)
		}
		for id, why := range known {
			t.Errorf("TLS %v: %s passes now: remove the exception (%s)", c.TLS, id, why)
		}
	}
}

func failures(g *spec.TestGroup, yield func(string, *spec.TestResult)) {
	for i, c := range g.Tests {
		if c.Result != nil && c.Result.Failed {
			yield(fmt.Sprintf("%s/%d", g.ID(), i+1), c.Result)
		}
	}
	for _, sub := range g.Groups {
		failures(sub, yield)
	}
}
