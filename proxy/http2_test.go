package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wayleave.dev/proxy/schema"
	"wayleave.dev/proxy/server"
)

// over2 is the name of the test whose subtests ask by HTTP/2.
const over2 = "TestOptionsOverHTTP2/"

// The tables of options, asked by HTTP/2: by prior knowledge all of them, since that differs
// from HTTP/1.1 in nothing else; by TLS those to which TLS is all the same.
func TestOptionsOverHTTP2(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(*testing.T)
		tls  bool
	}{
		{"rewrite", TestRewriteTarget, true}, {"redirects", TestRedirects, false}, {"size", TestBodySize, true},
		{"times", TestTimeouts, true},
		{"sources", TestSources, true}, {"passwords", TestBasicAuth, true}, {"CORS", TestCORS, true},
		{"rate", TestLimitRPS, true},
		{"canary", TestCanary, true}, {"canary and affinity", TestCanaryAndAffinity, true},
		{"affinity", TestAffinity, false},
		{"affinity to who drains", TestAffinityToOneThatDrainsOrFails, true},
		{"cookies", TestAffinityCookieAttributes, false},
		{"question", TestAuthURL, false}, {"question to a Service", TestAuthURLOfAService, false},
		{"question of the host", TestAuthURLOfTheHost, false},
		{"words of a server", TestNobodyElseSaysWhatAServerSays, true},
		{"order", TestOrderOfOptions, false}, {"HTTPS endpoints", TestBackendProtocolHTTPS, false},
	} {
		t.Run("plain "+c.name, c.test)
		if c.tls {
			t.Run("TLS "+c.name, c.test)
		}
	}
}

// serve2 has the whole server in front of the proxy, where the test asks by HTTP/2.
func (r *rig) serve2() {
	name, ok := strings.CutPrefix(r.t.Name(), over2)
	if !ok {
		name, ok = strings.CutPrefix(r.t.Name(), "TestHeadsOfHTTP2AreThoseOfHTTP1/")
	}
	if !ok {
		return
	}
	certs, err := server.NewCertificates()
	if err != nil {
		r.t.Fatal(err)
	}
	s := server.New(server.Options{Certificates: certs, Handle: r.p.Handle, HTTP1: r.limits,
		Refused: func(server.Refusal) {}, Log: slog.New(slog.DiscardHandler)})
	s.SetLimits(server.Limits{Connections: 1 << 20})
	r.t.Cleanup(func() { s.Keep(nil) })
	for _, encrypted := range []bool{false, true} {
		l := listen(r.t).(*net.TCPListener)
		f, err := l.File()
		if err != nil {
			r.t.Fatal(err)
		}
		defer f.Close()
		if err := s.Listen(schema.Socket{Addr: addrOf(l), TLS: encrypted}, f); err != nil {
			r.t.Fatal(err)
		}
		if encrypted {
			r.tls = l.Addr().String()
		} else {
			r.addr = l.Addr().String()
		}
		_ = l.Close()
	}
	if r.http2 = true; strings.HasPrefix(name, "TLS") {
		r.addr = r.tls
	}
}

// ask2 is ask by HTTP/2. The frames are written here, since a client of others would not
// send all that the tables have.
func (r *rig) ask2(request string) (*http.Response, string) {
	r.t.Helper()
	var c net.Conn
	var err error
	scheme := "http"
	if r.addr == r.tls {
		scheme = "https"
		c, err = tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"},
			ServerName: r.sni})
	} else {
		c, err = net.Dial("tcp", r.addr)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	line, rest, _ := strings.Cut(request, "\n")
	rest, _, _ = strings.Cut(rest, "\n\n")
	method, path, _ := strings.Cut(line, " ")
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	put := func(name, value string) { _ = enc.WriteField(hpack.HeaderField{Name: name, Value: value}) }
	hop := "" // what belongs to a connection of HTTP/1.1, and is malformed here
	for f := range strings.SplitSeq(rest, "\n") {
		if name, value, _ := strings.Cut(f, ":"); strings.EqualFold(name, "Connection") {
			hop = "connection, " + strings.ToLower(value) + ","
		}
	}
	whole := true
	host, fields, body := "shop.example", [][2]string{}, ""
	for f := range strings.SplitSeq(rest, "\n") {
		name, value, ok := strings.Cut(f, ":")
		switch name, value = strings.ToLower(name), strings.TrimSpace(value); {
		case name == "host":
			host = value
		case ok && name == "": // ":scheme: x"
			scheme = strings.TrimPrefix(value, "scheme: ")
		case ok && strings.Contains(hop, name+","):
		case ok:
			if n := 0; name == "content-length" {
				_, _ = fmt.Sscan(value, &n)
				body = strings.Repeat("x", min(n, 1<<10))
				whole = n == len(body) // what is refused is refused without its rest
			}
			fields = append(fields, [2]string{name, value})
		}
	}
	put(":method", method)
	put(":scheme", scheme)
	put(":authority", host)
	put(":path", path)
	for _, f := range fields {
		put(f[0], f[1])
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		r.t.Fatal(err)
	}
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.MaxHeaderListSize = 1 << 20
	if err := fr.WriteSettings(); err != nil {
		r.t.Fatal(err)
	}
	for first, left := true, block.Bytes(); first || len(left) > 0; first = false {
		n := min(len(left), 16<<10)
		if first {
			err = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: left[:n], EndStream: body == "",
				EndHeaders: n == len(left)})
		} else {
			err = fr.WriteContinuation(1, n == len(left), left[:n])
		}
		if err != nil {
			r.t.Fatal(err)
		}
		left = left[n:]
	}
	if body != "" {
		if err := fr.WriteData(1, whole, []byte(body)); err != nil {
			r.t.Fatal(err)
		}
	}
	resp, got := &http.Response{Header: http.Header{}}, strings.Builder{}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			r.t.Fatalf("%q: %v; %s", request, err, r.told())
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			for _, h := range f.RegularFields() {
				resp.Header.Add(h.Name, h.Value)
			}
			if status := f.PseudoValue("status"); status != "" {
				_, _ = fmt.Sscan(status, &resp.StatusCode)
				resp.Status = fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
			}
		case *http2.DataFrame:
			got.Write(f.Data())
		case *http2.RSTStreamFrame:
			if resp.StatusCode == 0 || f.ErrCode != http2.ErrCodeNo {
				r.t.Fatalf("%q: reset by %s; %s", request, f.ErrCode, r.told())
			}
		case *http2.GoAwayFrame:
			r.t.Fatalf("%q: GOAWAY %s", request, f.ErrCode)
		}
		if h := f.Header(); h.StreamID == 1 && h.Flags.Has(http2.FlagDataEndStream) && (h.Type == http2.FrameData ||
			h.Type == http2.FrameHeaders) {
			return resp, got.String()
		}
	}
}
