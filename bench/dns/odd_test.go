package dns

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/fakeapi"
	"wayleave.dev/internal/odddns"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/lab/build"
)

// TestOddJudge sends equal queries to CoreDNS and Wayleave with upstream servers that have odd habits, a domain for
// each. Each difference must match a rule, and each rule must match a difference; the second part of docs/dns-judge.md
// is generated from them.
func TestOddJudge(t *testing.T) {
	p := buildPrograms(t)
	s := newSnapshot(1)
	api := fakeapi.New()
	defer api.Close()
	api.Put(s.all()...)
	habits := odddns.Habits()
	var blocks strings.Builder
	stubs := []string{}
	for i, h := range habits {
		fmt.Fprintf(&blocks, "%s:53 {\n    errors\n    forward . %s\n}\n", oddDomain(h), oddAddr(i))
		stubs = append(stubs, oddDomain(h)+"="+oddAddr(i))
	}
	theirs := p.startCoreDNS(t, api, corefile+blocks.String())
	ours := p.startOurs(t, api, "-stubs", strings.Join(stubs, ","))
	ready(t, theirs, lastService)
	ready(t, ours, lastService)
	for _, c := range []*contestant{theirs, ours} {
		for i, h := range habits {
			startOdd(t, c.ns, h, oddAddr(i))
		}
	}
	j := &oddJudge{rules: oddRules(), used: map[string]int{}, example: map[string]string{}}
	var wg sync.WaitGroup
	for i, h := range habits {
		wg.Go(func() {
			a, b := asker{c: theirs}, asker{c: ours}
			for _, q := range oddQueries(h, rand.New(rand.NewPCG(21, uint64(i)))) {
				if err := j.put(t.Context(), h, q, &a, &b); err != nil {
					t.Errorf("%s: %v: %v", h.Name, q.Question, err)
					return
				}
			}
		})
	}
	wg.Wait()
	j.report(t, len(habits))
}

func oddDomain(h odddns.Habit) string { return h.Name + ".test." }
func oddAddr(i int) string            { return fmt.Sprintf("127.0.1.%d:5301", i+1) }

func startOdd(t *testing.T, ns *testnet.NS, h odddns.Habit, addr string) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	if !h.NoTCP {
		l = ns.Listen("tcp", addr)
	}
	s := odddns.Start(h, ns.ListenPacket("udp", addr), ns.ListenPacket("udp", host+":5353"), l)
	t.Cleanup(s.Close)
}

// oddQueries are names and types of a habit's domain with the usual variations of clients: fewer if every answer takes
// seconds, or never arrives.
func oddQueries(h odddns.Habit, r *rand.Rand) (list []*dns.Msg) {
	n := 110
	switch {
	case strings.Contains(h.Name, "-silent") || h.Name == "every-second-lost":
		n = 24
	case h.Delay > 0 || slices.Contains([]string{"silent", "id-other", "query-back", "port-other", "question-missing",
		"question-other-name", "question-other-type", "question-twice"}, h.Name):
		n = 12
	}
	names := []string{"first", "missing", "alias", "long", "a.b.c", "www", "missing.too", "alias.b", "x1", "UPPER"}
	types := []uint16{dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeMX, dns.TypeHTTPS}
	for i := range n {
		name := names[i%len(names)]
		if i >= len(names) { // another one, so that no cache answers
			label, rest, _ := strings.Cut(name, ".")
			name = strings.TrimSuffix(fmt.Sprintf("%s-%d.%s", label, r.IntN(1000), rest), ".")
		}
		q := new(dns.Msg).SetQuestion(name+"."+oddDomain(h), types[r.IntN(len(types))])
		switch r.IntN(7) {
		case 0:
			q.Question[0].Name = mixed(r, q.Question[0].Name)
		case 1, 2:
			q.SetEdns0(1232, false)
		case 3:
			q.SetEdns0(4096, false)
		case 4:
			q.SetEdns0(1232, true)
		case 5:
			q.CheckingDisabled, q.AuthenticatedData = r.IntN(2) == 0, r.IntN(2) == 0
		}
		list = append(list, q)
	}
	return list
}

// oddJudge compares and counts. Its maps are guarded by mu.
type oddJudge struct {
	rules       []oddRule
	mu          sync.Mutex
	asked, same int
	used        map[string]int
	example     map[string]string
	unexplained []string
	lost        []string
}

// oddCase is a query with two answers.
type oddCase struct {
	habit        odddns.Habit
	q            *dns.Msg
	theirs, ours *dns.Msg
}

func (j *oddJudge) put(_ context.Context, h odddns.Habit, q *dns.Msg, theirs, ours *asker) error {
	var a, b *dns.Msg
	var errs [2]error
	var wg sync.WaitGroup
	wg.Go(func() { a, errs[0] = patiently(theirs, q) })
	wg.Go(func() { b, errs[1] = patiently(ours, q) })
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.asked++
	c := oddCase{h, q, a, b}
	parts := c.parts()
	if len(parts) == 0 {
		j.same++
		return nil
	}
	for _, part := range parts {
		i := slices.IndexFunc(j.rules, func(r oddRule) bool { return slices.Contains(r.parts, part) && r.when(c) })
		if i < 0 {
			j.unexplained = append(j.unexplained,
				fmt.Sprintf("%s: %s of %s %s (EDNS: %s)\n   CoreDNS: %s\n   ours:    %s", h.Name, part,
					dns.TypeToString[q.Question[0].Qtype],
					q.Question[0].Name, options(q), show(reply{a, a}), show(reply{b, b})))
			continue
		}
		title := j.rules[i].title
		if j.used[title]++; j.used[title] == 1 {
			j.example[title] = "`" + dns.TypeToString[q.Question[0].Qtype] + " " +
				strings.ToLower(q.Question[0].Name) + "`"
		}
	}
	if c.tells(a) && (b.Rcode != a.Rcode || len(b.Answer) == 0 && !b.Truncated) {
		j.lost = append(j.lost, h.Name+" "+q.Question[0].String())
	}
	return nil
}

// tells reports whether an answer has records of the queried name.
func (c oddCase) tells(m *dns.Msg) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		return strings.EqualFold(rr.Header().Name,
			c.q.Question[0].Name)
	})
}

// patiently queries by UDP: CoreDNS takes up to ten seconds. No answer counts as SERVFAIL.
func patiently(a *asker, q *dns.Msg) (*dns.Msg, error) {
	conn, err := a.c.ns.Dial("udp", server, time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(12 * time.Second)); err != nil {
		return nil, err
	}
	co := &dns.Conn{Conn: conn, UDPSize: 65535}
	if err := co.WriteMsg(q); err != nil {
		return nil, err
	}
	got, err := co.ReadMsg()
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure), nil
	}
	if got == nil {
		return nil, err
	}
	return got, nil
}

// parts returns what differs: the code, the records by name, type and data, and bits.
func (c oddCase) parts() (parts []string) {
	note := func(part string, differs bool) {
		if differs {
			parts = append(parts, part)
		}
	}
	a, b := c.theirs, c.ours
	note(partRcode, a.Rcode != b.Rcode)
	note(partAnswer, !slices.Equal(timeless(a.Answer), timeless(b.Answer)))
	note(partAuthority, !slices.Equal(timeless(a.Ns), timeless(b.Ns)))
	note(partExtra, !slices.Equal(timeless(a.Extra), timeless(b.Extra)))
	note(partTC, a.Truncated != b.Truncated)
	note(partAA, a.Authoritative != b.Authoritative)
	note(partRA, a.RecursionAvailable != b.RecursionAvailable)
	note(partFlags, a.AuthenticatedData != b.AuthenticatedData || a.CheckingDisabled != b.CheckingDisabled ||
		a.Zero != b.Zero)
	note(partQuestion, !slices.Equal(a.Question, b.Question))
	note(partOPT, options(a) != options(b))
	return parts
}

// timeless returns records without TTL and letter case, sorted.
func timeless(section []dns.RR) (out []string) {
	for _, rr := range section {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		rr = dns.Copy(rr)
		rr.Header().Ttl = 0
		out = append(out, strings.ToLower(strings.Join(strings.Fields(rr.String()), " ")))
	}
	slices.Sort(out)
	return out
}

// oddSection begins the part of the page that this test makes.
const oddSection = "## Servers with odd habits"

func (j *oddJudge) report(t *testing.T, habits int) {
	t.Logf("%d queries, %d the same", j.asked, j.same)
	if j.asked < enough {
		t.Errorf("%d queries; want %d", j.asked, enough)
	}
	for _, r := range j.rules {
		if j.used[r.title] == 0 {
			t.Errorf("rule %q matches no difference: remove it", r.title)
		}
	}
	byHabit := map[string]int{}
	for _, u := range j.unexplained {
		name, _, _ := strings.Cut(u, ":")
		if byHabit[name]++; byHabit[name] <= 2 {
			t.Error(u)
		}
	}
	if len(byHabit) > 0 {
		t.Errorf("%d differences that no rule explains: %v", len(j.unexplained), byHabit)
	}
	if file := os.Getenv("WAYLEAVE_JUDGE_ALL"); file != "" { // all of them, for inspection
		if err := os.WriteFile(file, []byte(strings.Join(j.unexplained, "\n")+fmt.Sprint("\n", j.used)),
			0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range j.lost[:min(len(j.lost), 10)] {
		t.Errorf("CoreDNS has records, and Wayleave has none: %s", l)
	}
	if !t.Failed() {
		j.write(t, habits)
	}
}

func (j *oddJudge) write(t *testing.T, habits int) {
	t.Helper()
	page := result.Section(oddSection)
	page.Text("`cd bench && go test -count=1 -run TestOddJudge ./dns` generates this part. CoreDNS %s with its "+
		"`forward` plugin and Wayleave with `dns.stubDomains` use the same %d upstream servers, each with one habit "+
		"of old or broken servers (`internal/odddns`). Both get the same %d queries by UDP: existing and missing "+
		"names, aliases and long names, with and without EDNS0, mixed letter case and flags. %d replies are equal, "+
		"except for TTLs and the letter case of names. There is no query for which CoreDNS has records of the name "+
		"and Wayleave has none.",
		build.CoreDNSVersion, habits, j.asked, j.same)
	rows := [][]string{{"what", "CoreDNS", "Wayleave", "what decides", "replies", "for example"}}
	for _, r := range j.rules {
		rows = append(rows, []string{r.title, r.coredns, r.ours, r.decides, fmt.Sprint(j.used[r.title]),
			j.example[r.title]})
	}
	page.Table(rows)
	file := filepath.Join(result.Docs, "dns-judge.md")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(old), oddSection)
	if err := os.WriteFile(file, []byte(strings.TrimRight(first, "\n")+"\n\n"+page.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Log(slices.Sorted(maps.Keys(j.used)))
}
