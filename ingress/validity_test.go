package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/proxy/schema"
	"wayleave.dev/reconcile"
)

// told are the reasons of Events of all Ingresses.
func (w *fixture) told() string {
	var out []string
	for _, list := range w.problems {
		for _, p := range list {
			out = append(out, p.Event)
		}
	}
	return strings.Join(out, " ")
}

// A certificate is named before its end, at its end and before its time, and served all
// the same; a new one takes that back. What it is not for gets the default certificate.
func TestCertificatesAreNamedWhenTheirTimeComes(t *testing.T) {
	start := time.Now().Truncate(time.Second)
	w := newFixture(t, Settings{Default: true}, sampleYAML(t))
	now := start
	w.planner.now = func() time.Time { return now }
	secret := func(from, until time.Time, names ...string) {
		t.Helper()
		s := &model.Secret{Name: parseName("shop/tls"), Chain: []byte("chain"), Key: []byte("key"), Names: names,
			From: from, Until: until}
		if err := w.store.Write(func(tx *model.Writer) { tx.PutSecret(s) }); err != nil {
			t.Fatal(err)
		}
		w.round()
	}
	want := func(when, told, cert string) {
		t.Helper()
		if got := w.told(); got != told {
			t.Errorf("%s: Events %q, want %q: %v", when, got, told, w.allProblems())
		}
		if got := certificate(w.hosts(), "a.example"); got != cert {
			t.Errorf("%s: certificate %s, want %s", when, got, cert)
		}
	}
	day := 24 * time.Hour
	w.read(ing("a", nil, rules("a.example / P web:80"), tlsOf("tls a.example")))
	secret(start.Add(day), start.Add(90*day), "a.example")
	want("before its time", ReasonNotYetValid, "shop/tls")
	for _, step := range []struct {
		after time.Duration
		told  string
	}{{day - time.Second, ReasonNotYetValid}, {day, ""}, {80*day - time.Second, ""}, {80 * day, ReasonExpiring},
		{90*day - time.Second, ReasonExpiring}, {90 * day, ReasonExpired}, {200 * day, ReasonExpired}} {
		now = start.Add(step.after)
		w.round() // no object changed
		want(fmt.Sprint("after ", step.after), step.told, "shop/tls")
	}
	if all := strings.Join(w.allProblems(), "\n"); !strings.Contains(all,
		"Ingress shop/a: spec.tls[0].secretName: the certificate of Secret shop/tls expired on "+
			start.Add(90*day).UTC().Format(time.RFC3339)+"; it stays in use") {
		t.Error(all)
	}
	secret(now.Add(-day), now.Add(90*day), "a.example")
	want("a new one", "", "shop/tls")
	now = now.Add(100 * day)
	w.round()
	want("the new one ended, too", ReasonExpired, "shop/tls")
	secret(now.Add(-day), now.Add(90*day), "b.example")
	want("one for another name", "", "default")
	if all := strings.Join(w.allProblems(), "\n"); !strings.Contains(all, "is for b.example, not for a.example") {
		t.Error(all)
	}
}

// Nothing but the clock says that a certificate has ended: the loop finds it by itself, with
// no object that changes.
func TestTheClockIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := model.NewStore()
		if err != nil {
			t.Fatal(err)
		}
		until := time.Now().Add(30*24*time.Hour + 17*time.Minute + 13*time.Second)
		err = store.Write(func(tx *model.Writer) {
			tx.PutSecret(&model.Secret{Name: parseName("shop/tls"), Chain: []byte("c"), Key: []byte("k"),
				Names: []string{"a.example"}, From: time.Now().Add(-time.Hour), Until: until})
			tx.PutIngress(&model.Ingress{Name: parseName("shop/a"), Class: ClassName,
				TLS:   []model.IngressTLS{{Hosts: []string{"a.example"}, Secret: "tls"}},
				Rules: []model.IngressRule{{Host: "a.example"}}})
		})
		store.MarkSynced(model.AllKinds())
		if err != nil {
			t.Fatal(err)
		}
		p := NewPlanner(Settings{})
		var mu sync.Mutex
		told, at := "", time.Time{}
		loop := &reconcile.Loop[Key, Plan]{Name: "ingress", Store: store, Kinds: Kinds, Planner: p,
			Equal: Equal, Wake: p.Wake(),
			Target: Target{nowhere[schema.Host]{}, nowhere[schema.Backend]{}, nowhere[schema.Certificate]{}},
			Health: reconcile.NewHealth(func(bool, time.Duration) {}, func(string) {}),
			Log:    slog.New(slog.DiscardHandler),
			Report: func(key string, problems []model.Problem) {
				mu.Lock()
				defer mu.Unlock()
				if strings.HasPrefix(key, "Ingress ") {
					told = ""
					for _, q := range problems {
						told, at = q.Event, time.Now()
					}
				}
			}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = loop.Run(ctx) })
		wg.Go(func() {
			if err := p.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		want := func(reason string, since time.Time) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if told != reason || reason != "" && at.Sub(since).Abs() > time.Second {
				t.Errorf("at %s: %q since %s, want %q since %s", time.Now(), told, at, reason, since)
			}
		}
		time.Sleep(19 * 24 * time.Hour)
		want("", time.Time{})
		time.Sleep(2 * 24 * time.Hour)
		want(ReasonExpiring, until.Add(-expiring))
		time.Sleep(9*24*time.Hour + time.Hour)
		want(ReasonExpired, until)
		cancel()
		wg.Wait()
		_ = store.Close()
	})
}

// nowhere takes plans.
type nowhere[P any] struct{}

func (nowhere[P]) Sync(context.Context, map[string]P) error            { return nil }
func (nowhere[P]) Apply(context.Context, map[string]P, []string) error { return nil }
