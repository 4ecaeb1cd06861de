package ingress

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/model"
)

// busy returns the CPU time of this thread.
func busy(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// manyOf joins the texts of numbers.
func manyOf(n int, text func(i int) string) []string {
	out := make([]string, 0, n)
	for i := range n {
		out = append(out, text(i))
	}
	return out
}

// A change of one Ingress costs work in proportion to its size: every node that serves Ingress plans it, and the
// changes of all tenants wait meanwhile.
func TestTheCostOfAnIngressIsLinear(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	host := func(i int) string { return fmt.Sprintf("h%d.example / P web:80", i) }
	path := func(i int) string { return fmt.Sprintf("h.example /p%d P web:80", i) }
	gone := func(texts []string) string { return strings.ReplaceAll(rules(texts...), "web:", "gone:") }
	for what, make := range map[string]func(n int) string{
		"hosts": func(n int) string { return ing("a", nil, rules(manyOf(n, host)...)) },
		"paths": func(n int) string { return ing("a", nil, rules(manyOf(n, path)...)) },
		"paths that another one has": func(n int) string {
			return ing("a@2", nil, rules(manyOf(n, path)...)) + ing("b@1", nil, rules(manyOf(n, path)...))
		},
		"paths without Service": func(n int) string { return ing("a", nil, gone(manyOf(n, path))) },
		"paths that succeed those without Service": func(n int) string {
			return ing("a@2", nil, rules(manyOf(n, path)...)) + ing("b@1", nil, gone(manyOf(n, path)))
		},
		"Services": func(n int) string {
			return ing("a", nil, rules(manyOf(n, func(i int) string {
				return fmt.Sprintf("h.example /p%d P s%d:80", i, i)
			})...))
		},
		"wildcard hosts": func(n int) string {
			return ing("a", nil, rules(manyOf(n, func(i int) string {
				return fmt.Sprintf("*.h%d.example / P web:80", i)
			})...))
		},
		"hosts with a certificate": func(n int) string {
			return ing("a", nil, rules(manyOf(n, host)...), tlsOf("tls-a "+strings.Join(manyOf(n, func(i int) string {
				return fmt.Sprintf("h%d.example", i)
			}), " ")))
		},
		"hosts with names": func(n int) string {
			return ing("a", []string{"from-to-www-redirect: true"}, rules(manyOf(n, host)...))
		},
	} {
		cost := func(n int) time.Duration {
			w := newFixture(t, Settings{Default: true}, sampleYAML(t)+make(n))
			i, ok := w.store.Snapshot().Ingress(parseName("shop/a"))
			if !ok {
				t.Fatal("the Ingress is missing")
			}
			least := time.Hour
			for range 3 {
				runtime.GC()
				begin, c := busy(t), *i
				w.put(&c)
				least = min(least, busy(t)-begin)
			}
			return least
		}
		const small, factor = 1000, 8
		one, many := cost(small), cost(factor*small)
		if floor := 5 * time.Millisecond; many > 3*factor*max(one, floor) {
			t.Errorf("%s: %d cost %s, %d cost %s", what, small, one, factor*small, many)
		}
		t.Logf("%s: %d cost %s, %d cost %s", what, small, one, factor*small, many)
	}
}

// An Ingress that names thousands of Secrets makes no agent open thousands of watches. Those of guards are read.
func TestSecretsOfAnIngressAreBounded(t *testing.T) {
	entries := manyOf(20*maxSecrets, func(i int) string { return fmt.Sprintf("s%d h%d.example", i, i) })
	w := newFixture(t, Settings{Default: true}, sampleYAML(t)+ing("a",
		[]string{"auth-type: basic", "auth-secret: users"}, rules("h1.example / P web:80"), tlsOf(entries...)))
	i, _ := w.store.Snapshot().Ingress(parseName("shop/a"))
	names := SecretsOf(i)
	if len(names) != maxSecrets || !slices.Contains(names, model.Name{Namespace: "shop", Name: "users"}) {
		t.Errorf("%d Secrets are read, want %d with that of the guard", len(names), maxSecrets)
	}
	if !slices.ContainsFunc(w.allProblems(), func(p string) bool {
		return strings.Contains(p, fmt.Sprintf("names more than %d Secrets", maxSecrets))
	}) {
		t.Error("no problem names the bound")
	}
}
