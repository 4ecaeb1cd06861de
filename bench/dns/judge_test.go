package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"wayleave.dev/bench/internal/result"
	"wayleave.dev/internal/fakeapi"
	"wayleave.dev/lab/build"
)

// enough is the minimum number of compared queries.
const enough = 5000

// TestJudge sends equal queries to CoreDNS and Wayleave with the same objects. Each difference must match a rule, and
// each rule must match a difference; docs/dns-judge.md is generated from them.
func TestJudge(t *testing.T) {
	p := buildPrograms(t)
	s := newSnapshot(1)
	api := fakeapi.New()
	defer api.Close()
	api.Put(s.all()...)
	theirs, ours := p.startCoreDNS(t, api, corefile), p.startOurs(t, api)
	ready(t, theirs, lastService)
	ready(t, ours, lastService)
	j := &judge{rules: rules(), objects: len(s.all()), cluster: newIndex(s), missing: map[string]bool{},
		theirs: asker{c: theirs}, ours: asker{c: ours}}
	for _, q := range s.queries() {
		if err := j.put(q); err != nil {
			t.Fatal(err)
		}
	}
	j.report(t)
}

// judge compares and counts.
type judge struct {
	rules        []rule
	objects      int
	theirs, ours asker
	asked, cut   int
	same, nearly int // in every part, and in all parts except header bits
	used         map[string]int
	cluster      *index
	missing      map[string]bool // names for which CoreDNS has neither A nor other records
	example      map[string]string
	unexplained  []string
}

// put sends a query to both.
func (j *judge) put(q *dns.Msg) error {
	a, err := question(&j.theirs, q)
	if err != nil {
		return fmt.Errorf("%v: %w", q.Question, err)
	}
	b, err := question(&j.ours, q)
	if err != nil {
		return fmt.Errorf("%v: %w", q.Question, err)
	}
	j.asked++
	if a.udp.Truncated || b.udp.Truncated {
		j.cut++
	}
	if q.Question[0].Qtype == dns.TypeA && a.full.Rcode == dns.RcodeNameError {
		j.missing[strings.ToLower(q.Question[0].Name)] = true
	}
	j.weigh(q, a, b)
	return nil
}

func question(a *asker, q *dns.Msg) (r reply, err error) {
	r.udp, r.full, err = a.ask(q)
	if r.full == nil {
		r.full = r.udp
	}
	return r, err
}

// weigh finds the rule for each part that differs.
func (j *judge) weigh(q *dns.Msg, theirs, ours reply) {
	parts := differ(theirs, ours)
	if len(parts) == 0 {
		j.same++
		return
	}
	c := &difference{q: q, name: strings.ToLower(q.Question[0].Name), qtype: q.Question[0].Qtype,
		theirs: theirs, ours: ours,
		cluster: j.cluster}
	c.missing = j.missing[c.name]
	if !slices.ContainsFunc(parts, func(p string) bool { return p != partRA && p != partOPT && p != partTC }) {
		j.nearly++
	}
	var left []string
	used := map[string]bool{}
	for _, part := range parts {
		ok := false
		for _, r := range j.rules {
			if r.part(part) && r.when(c) {
				used[r.title], ok = true, true
				break
			}
		}
		if !ok {
			left = append(left, part)
		}
	}
	if j.used == nil {
		j.used, j.example = map[string]int{}, map[string]string{}
	}
	for title := range used {
		if j.used[title]++; j.used[title] == 1 {
			j.example[title] = dns.TypeToString[c.qtype] + " " + c.name
		}
	}
	if len(left) > 0 {
		j.unexplained = append(j.unexplained, fmt.Sprintf("%s\t%s %s (EDNS: %s): %s\n   CoreDNS: %s\n   ours:    %s",
			strings.Join(left, "+"), dns.TypeToString[c.qtype], q.Question[0].Name, options(q),
			strings.Join(left, ", "), show(theirs), show(ours)))
	}
}

// report fails the test for differences without a rule, and for rules without a difference.
func (j *judge) report(t *testing.T) {
	t.Logf("%d queries, %d the same, %d cut", j.asked, j.same, j.cut)
	if j.asked < enough {
		t.Errorf("%d queries; want %d", j.asked, enough)
	}
	for _, r := range j.rules {
		if j.used[r.title] == 0 {
			t.Errorf("rule %q matches no difference: remove it", r.title)
		}
		t.Logf("rule %q: %d", r.title, j.used[r.title])
	}
	if file := os.Getenv("WAYLEAVE_JUDGE_ALL"); file != "" { // all of them, for inspection
		if err := os.WriteFile(file, []byte(strings.Join(j.unexplained, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, u := range j.unexplained {
		if i == 20 {
			break
		}
		t.Error(u)
	}
	if n := len(j.unexplained); n > 0 {
		t.Errorf("%d differences that no rule explains", n)
	}
	if !t.Failed() {
		j.write(t)
	}
}

// write generates docs/dns-judge.md.
func (j *judge) write(t *testing.T) {
	t.Helper()
	page := result.New(result.Docs, "dns-judge", "Comparison with CoreDNS")
	page.Text("`cd bench && go test -count=1 -run TestJudge ./dns` generates this page. CoreDNS %s with kubeadm's "+
		"Corefile and Wayleave follow one API server with the same %d objects: ClusterIPs of one and both families, "+
		"headless Services with and without hostnames, unready and terminating endpoints, ExternalNames in chains "+
		"and loops, long answers, unusual names. Both get the same %d queries, %d types for every name, some with "+
		"mixed letter case, EDNS0 or rare flags; truncated answers are queried again by TCP. The test compares the "+
		"code, the header bits, the question and every record of every section with its TTL; it ignores the order "+
		"of records (both rotate them) and serial numbers.",
		build.CoreDNSVersion, j.objects, j.asked, len(types()))
	page.Text("%d replies are equal in all of this, %d more except for header bits. These tables list all other "+
		"differences with the rule that decides them. The test fails for a difference that is not listed, and for a "+
		"row without an example.", j.same, j.nearly)
	for _, open := range []bool{false, true} {
		rows := [][]string{{"what", "CoreDNS", "Wayleave", "what decides", "replies", "for example"}}
		for _, r := range j.rules {
			if r.open == open {
				rows = append(rows, []string{r.title, r.coredns, r.ours, r.decides, fmt.Sprint(j.used[r.title]),
					"`" + j.example[r.title] + "`"})
			}
		}
		if len(rows) == 1 {
			continue
		}
		page.Text("## %s", map[bool]string{false: "Differences that stay",
			true: "Differences that Wayleave has to end"}[open])
		page.Table(rows)
	}
	if old, err := os.ReadFile(filepath.Join(result.Docs, "dns-judge.md")); err == nil { // keep the other test's part
		if _, part, ok := strings.Cut(string(old), oddSection); ok {
			page.Text("%s", oddSection+strings.TrimRight(part, "\n"))
		}
	}
	if err := page.Write(); err != nil {
		t.Fatal(err)
	}
}
