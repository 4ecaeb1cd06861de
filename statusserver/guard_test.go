package statusserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/internal/testnet"
)

// scrapeWith asks for the metrics with a header Authorization; "" is none.
func scrapeWith(addr, authorization string) (int, string, error) {
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // the certificate signs itself
	q, err := http.NewRequest(http.MethodGet, "https://"+addr+"/metrics", nil)
	if err != nil {
		return 0, "", err
	}
	if authorization != "" {
		q.Header.Set("Authorization", authorization)
	}
	resp, err := c.Do(q)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// With a token that the API server allows, the metrics are served by TLS; without one, nothing is.
func TestAScrapeNeedsAToken(t *testing.T) {
	addr := free(t)
	var asked atomic.Int64
	s := &Supervisor{Args: []string{"status-server"}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Ports:  ports(Port{Name: addr, Pages: map[string]Page{"/metrics": AllMetrics}, Token: true}),
		Render: func(Page) Answer { return Text("wayleave_secret 1\n") }, Say: func(string, error) {},
		Review: func(_ context.Context, token string) int {
			asked.Add(1)
			status := map[string]int{"good.token": 200, "no.right": 403, "down": 503}[token]
			if status == 0 {
				return 401
			}
			return status
		}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for _, tc := range []struct {
		authorization string
		status        int
	}{
		{"Bearer good.token", 200}, {"bearer good.token", 200}, {"", 401}, {"Basic good.token", 401},
		{"Bearer", 401}, {"Bearer ", 401}, {"Bearer bad.token", 401}, {"Bearer good.token\"", 401},
		{"Bearer good.token x", 401}, {"Bearer no.right", 403}, {"Bearer down", 503},
		{"Bearer " + strings.Repeat("x", maxToken+1), 401},
	} {
		testnet.Eventually(t, 30*time.Second, func() error { // unknown tokens have a rate
			status, body, err := scrapeWith(addr, tc.authorization)
			if err != nil || status != tc.status || strings.Contains(body, "wayleave_secret") != (tc.status == 200) {
				return fmt.Errorf("%.40q: %d, %.100q, %w; want %d", tc.authorization, status, body, err, tc.status)
			}
			return nil
		})
	}
	if n := asked.Load(); n > 10 {
		t.Errorf("%d reviews", n)
	}
	plain, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, _ = io.WriteString(plain, "GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good.token\r\n\r\n")
	if b, _ := io.ReadAll(plain); strings.Contains(string(b), "wayleave_secret") {
		t.Error("metrics were served without TLS")
	}
}

// A result is used for a bounded time, a flood of unknown tokens is few reviews, and keeps out no known one.
func TestReviewsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reviews, allowed := 0, true
		g := newGuard(func(_ context.Context, token string) int {
			reviews++
			if strings.HasPrefix(token, "prometheus") && allowed {
				return http.StatusOK
			}
			return http.StatusUnauthorized
		})
		check := func(token, from string) int {
			q := httptest.NewRequest(http.MethodGet, "/metrics", nil)
			q.Header.Set("Authorization", "Bearer "+token)
			q.RemoteAddr = from
			return g.check(q)
		}
		if status := check("prometheus", "10.0.0.1:1"); status != http.StatusOK {
			t.Fatal(status)
		}
		for second := range 300 {
			for i := range 500 { // strangers of 100 addresses
				_ = check(fmt.Sprintf("t%d.%d", second, i), fmt.Sprintf("10.1.0.%d:1", i%100))
			}
			if second%10 == 0 {
				if status := check("prometheus", "10.0.0.1:1"); status != http.StatusOK {
					t.Fatalf("after %d s: %d", second, status)
				}
				// The kubelet renews tokens: the next one is unknown, and strangers have used up their reviews.
				next := fmt.Sprintf("prometheus%d", second)
				if status := check(next, "10.0.0.1:1"); status != http.StatusOK {
					t.Fatalf("a renewed token after %d s: %d", second, status)
				}
			}
			time.Sleep(time.Second)
		}
		if most := 300*maxReviews + 2*maxReviews + 40; reviews > most {
			t.Errorf("%d reviews in 300 s, want %d at most", reviews, most)
		}
		if len(g.verdicts) > maxVerdicts || len(g.unknown.sources) > maxSources {
			t.Errorf("%d results and %d sources are kept", len(g.verdicts), len(g.unknown.sources))
		}
		for i := range 2 * maxScrapers {
			g.trust(netip.AddrFrom4([4]byte{10, 2, 0, byte(i)}))
		}
		if len(g.scrapers) > maxScrapers {
			t.Errorf("%d scrapers are kept", len(g.scrapers))
		}
		allowed = false
		time.Sleep(allowedFor)
		if status := check("prometheus", "10.0.0.1:1"); status != http.StatusUnauthorized {
			t.Errorf("a revoked token: %d", status)
		}
	})
}
