package server

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	agent "wayleave.dev/dns"
	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// A pod's walk is shown step by step, each with where its answer came from.
func TestAWalkIsShownAsThePodWouldSeeIt(t *testing.T) {
	r := newCallersRig(t)
	own := pod("default/own", "10.7.0.4")
	own.Searches = []string{"cluster.local"}
	r.pods[own.Pod] = own
	foreign := pod("default/foreign", "192.0.2.9")
	r.pods[foreign.Pod] = foreign
	r.known(map[string]string{"10.7.0.2": "default/web", "10.7.0.3": "shop/cart", "10.7.0.4": "default/own",
		"192.0.2.9": "default/foreign"})
	r.answered("10.7.0.2", "udp", "google.com.default.svc.cluster.local.", dns.TypeA, googled)
	upstream := "upstream " + r.out.addr.String()
	for _, c := range []struct{ pod, name, qtype, want string }{
		{"default/web", "google.com", "A",
			`pod default/web, 10.7.0.2: ` + search("default") + `, ndots 5, autopath on
1. google.com.default.svc.cluster.local. A: NOERROR from zone, ` +
				`autopath google.com.svc.cluster.local. NXDOMAIN from zone, ` +
				`autopath google.com.cluster.local. NXDOMAIN from zone, ` +
				`autopath google.com.corp.example. NXDOMAIN from UP, autopath google.com. NOERROR from UP
   google.com.default.svc.cluster.local. 17 IN CNAME google.com.
   google.com. 17 IN A 192.0.2.7
`},
		{"default/own", "google.com", "a",
			`pod default/own, 10.7.0.4: ` + search("default") + `, ndots 5, autopath not for its search list
1. google.com.default.svc.cluster.local. A: NXDOMAIN from zone
2. google.com.svc.cluster.local. A: NXDOMAIN from zone
3. google.com.cluster.local. A: NXDOMAIN from zone
4. google.com.corp.example. A: NXDOMAIN from UP
5. google.com. A: NOERROR from UP
   google.com. 17 IN A 192.0.2.7
`},
		{"default/foreign", "google.com.", "A",
			`pod default/foreign, 192.0.2.9: ` + search("default") + `, ndots 5, autopath on
1. google.com. A: NOERROR from UP
   google.com. 17 IN A 192.0.2.7
`},
		{"shop/cart", "broken.com.", "A",
			`pod shop/cart, 10.7.0.3: ` + search("shop") + `, ndots 5, autopath on
1. broken.com. A: SERVFAIL from nobody (UP: it answered SERVFAIL)
`},
	} {
		got, err := r.get(agent.QueryPath(c.pod, c.name, c.qtype))
		if want := strings.ReplaceAll(c.want, "UP", upstream); err != nil || got != want {
			t.Errorf("%s as %s: %v\n%swant\n%s", c.name, c.pod, err, got, want)
		}
	}
	for _, c := range []struct{ path, want string }{
		{agent.QueryPath("default/nobody", "google.com", "A"),
			"pod default/nobody is not known by address to this node's DNS"},
		{agent.QueryPath("nobody", "google.com", "A"), `"nobody" is not a pod`},
		{agent.QueryPath("default/web", "google.com", "AB"), `"AB" is not a record type`},
		{agent.QueryPath("default/web", "a..b", "A"), `"a..b" is not a DNS name`},
		{agent.LogPath("", "", time.Minute), "a log needs a pod or a name"},
		{agent.LogPath("default/web", "", 2*time.Hour), "at most 1h"},
		{agent.LogPath("web", "", time.Minute), `"web" is not a pod`},
	} {
		if _, err := r.get(c.path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.path, err, c.want)
		}
	}
}

// A log is switched on while the server runs, has the queries of its pod or its name and
// no other, and ends by itself.
func TestQueryLogs(t *testing.T) {
	r := newCallersRig(t)
	r.answered("10.7.0.2", "udp", "google.com.default.svc.cluster.local.", dns.TypeA, googled)
	ofPod, ofName := r.follow(agent.LogPath("shop/cart", "", 3*time.Second)),
		r.follow(agent.LogPath("", "Google.com", 3*time.Second))
	r.answered("10.7.0.3", "udp", backendName, dns.TypeA, "NOERROR: A 10.96.100.50")
	r.answered("10.7.0.2", "tcp", "google.com.default.svc.cluster.local.", dns.TypeA, googled)
	r.answered("10.7.0.2", "udp", "printer.corp.example.", dns.TypeA, "NOERROR: A 192.0.2.7")
	for _, c := range []struct {
		log  *bufio.Scanner
		want string
	}{
		{ofPod, " 10.7.0.3 shop/cart udp " + backendName + " A NOERROR "},
		{ofName, " 10.7.0.2 default/web tcp google.com.default.svc.cluster.local. A NOERROR "},
	} {
		var lines []string
		for c.log.Scan() {
			lines = append(lines, c.log.Text())
		}
		text := strings.Join(lines, "\n")
		if len(lines) < 2 || !strings.Contains(lines[0], c.want) || !strings.Contains(lines[len(lines)-1],
			fmt.Sprintf("# end: %d queries, and 0 ", len(lines)-1)) {
			t.Errorf("the log has\n%s\nwant %s", text, c.want)
		}
		for _, l := range lines[:len(lines)-1] {
			if !strings.Contains(l, c.want) {
				t.Errorf("not of this log: %s", l)
			}
		}
	}
}

// follow reads a log from behind its first line on.
func (r *rig) follow(path string) *bufio.Scanner {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	r.t.Cleanup(cancel)
	body, err := agent.Open(ctx, filepath.Join(r.dir, "health.sock"), path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = body.Close() })
	s := bufio.NewScanner(body)
	if !s.Scan() || !strings.HasPrefix(s.Text(), "# queries until ") {
		r.t.Fatalf("a log begins with %q, %v", s.Text(), s.Err())
	}
	return s
}

// A client that does not read delays no query, and the number of logs is bounded.
func TestLogsAreBounded(t *testing.T) {
	var logs queryLogs
	var all []*queryLog
	for range maxLogs {
		l := &queryLog{name: "a.", lines: make(chan string, 2)}
		if err := logs.add(l); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	if err := logs.add(&queryLog{}); err == nil {
		t.Errorf("%d logs", maxLogs+1)
	}
	for range 5 {
		put(logs.of(schema.Caller{}, "A.b."), "line")
	}
	if n := all[0].dropped.Load(); n != 3 {
		t.Errorf("%d of 5 lines were dropped by a log that holds 2", n)
	}
	for _, l := range all {
		logs.remove(l)
	}
	if !logs.none() {
		t.Error("logs that ended are still there")
	}
}

// What stands in a log is one line, whatever a query holds.
func TestALogLineIsOneLine(t *testing.T) {
	q := new(dns.Msg)
	q.Question = []dns.Question{{Name: "a\n b\x00.", Qtype: 65280, Qclass: 1}}
	raw, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(raw); err != nil {
		t.Fatal(err)
	}
	line := logLine(time.Now(), netip.MustParseAddr("10.7.0.2"),
		schema.Caller{Pod: model.Name{Namespace: "a", Name: "b"}},
		"udp", m, "zone")
	if strings.ContainsAny(line, "\n\x00") || !strings.Contains(line, `a\010\ b\000. TYPE65280`) {
		t.Errorf("%q", line)
	}
}

// search is the search list of a pod in a namespace.
func search(namespace string) string {
	return "search " + namespace + ".svc.cluster.local svc.cluster.local cluster.local corp.example"
}
