package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"wayleave.dev/agent"
	"wayleave.dev/internal/testnet"
)

// loadPlan is how much happens under the load.
type loadPlan struct {
	changes, rotations, pods int
	// pause is between two changes of routes, five of them between two certificates.
	pause time.Duration
	most  time.Duration // how long the maximum is looked for
}

func loadPlanOf() loadPlan {
	if os.Getenv("WAYLEAVE_TEST_LONG") != "" {
		return loadPlan{changes: 500, rotations: 100, pods: 40, pause: 100 * time.Millisecond, most: 5 * time.Second}
	}
	return loadPlan{changes: 100, rotations: 20, pods: 6, pause: 25 * time.Millisecond, most: time.Second}
}

// changer changes what routes, as a careful user does: what routes lead to is in force
// before them, and taken away after them.
type changer struct {
	*loadClients
	ask   *http.Client
	hosts []changedHost
	extra []string // hosts that are not under load
	n     int
	// served are the times from a change to the first answer that shows it.
	served []time.Duration
}

// changedHost is what the Ingress of a host under load says now.
type changedHost struct {
	loadHost
	i       int
	moves   string // Service of /moves
	swaps   string // of /swaps, a twin of the host's own
	more    []string
	options map[string]string
	version int // of the object's name
	mark    string
}

func (h *changedHost) other() string { return map[string]string{"a": "b", "b": "a"}[h.service] }

func (h *changedHost) objectName(version int) string { return fmt.Sprintf("load%d-%d", h.i, version) }

// put writes the host's Ingress.
func (c *changer) put(h *changedHost) {
	paths := append([]string{"/ " + h.service, "/moves " + h.moves, "/swaps " + h.swaps}, h.more...)
	if h.mark != "" {
		paths = append(paths, h.mark+"$ "+h.other())
	}
	c.rig.api.Put(loadIngress(h.objectName(h.version), h.name, fmt.Sprintf("tls%d", h.i),
		time.Hour-time.Duration(h.version)*time.Second, h.options, paths...))
}

// get returns the name of the pod that answers by plain HTTP.
func (c *changer) get(host, path string) (status int, service string, err error) {
	q, err := http.NewRequest(http.MethodGet, "http://"+loadPlain+path, nil)
	if err != nil {
		return 0, "", err
	}
	q.Host = host
	resp, err := c.ask.Do(q)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, "", err
	}
	return resp.StatusCode, resp.Header.Get("X-Service"), nil
}

// within is how long a change may take to be in force.
const within = 30 * time.Second

// until waits until a path is answered so.
func (c *changer) until(host, path string, status int, service string) error {
	for start := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		gotStatus, got, err := c.get(host, path)
		if err == nil && gotStatus == status && got == service {
			c.served = append(c.served, time.Since(start))
			return nil
		}
		if time.Since(start) > within {
			return fmt.Errorf("%s%s: %d by %q, %v; want %d by %q within %s", host, path, gotStatus, got, err, status,
				service, within)
		}
	}
}

// put1 writes a host's Ingress, and waits until all of it is in force: each has a path of
// its own that leads to the other Service.
func (c *changer) put1(h *changedHost) error {
	h.mark = fmt.Sprintf("/mark-%d", c.n)
	c.put(h)
	return c.until(h.name, h.mark, 200, h.other())
}

// loadOptions are annotations with which all requests of the load are answered still.
func loadOptions() []map[string]string {
	return []map[string]string{nil, {"enable-cors": "true"}, {"load-balance": "round_robin"},
		{"upstream-hash-by": "$request_uri"}, {"affinity": "cookie"}, {"proxy-read-timeout": "45"},
		{"proxy-body-size": "1m"}, {"whitelist-source-range": "192.0.2.0/24"}, {"limit-rps": "1000000"}}
}

// change makes the n-th change of routes.
func (c *changer) change() error {
	h := &c.hosts[rand.IntN(len(c.hosts))]
	kind := c.n % 8
	c.n++
	switch kind {
	case 0, 1: // a host comes
		name := fmt.Sprintf("x%d.example.com", c.n)
		c.extra = append(c.extra, name)
		c.rig.api.Put(loadIngress(name, name, "", 0, nil, "/ a", "/b b"))
		return errors.Join(c.until(name, "/", 200, "a"), c.until(name, "/b", 200, "b"))
	case 2: // and goes
		name := c.extra[0]
		c.extra = c.extra[1:]
		c.rig.api.Delete(&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: name}})
		return c.until(name, "/", 404, "")
	case 3: // a path under load moves to another Service
		h.moves = map[string]string{"a": "b", "b": "a"}[h.moves]
		if err := c.put1(h); err != nil {
			return err
		}
		return c.until(h.name, "/moves/x", 200, h.moves)
	case 4: // options change
		all := loadOptions()
		h.options = all[rand.IntN(len(all))]
		return c.put1(h)
	case 5: // paths beside those under load come and go
		h.more = append(h.more, fmt.Sprintf("/more-%d %s", c.n, h.other()))
		if len(h.more) > 5 {
			h.more = h.more[2:]
		}
		return c.put1(h)
	case 6: // another object takes the host over
		old := h.objectName(h.version)
		h.version++
		c.put(h)
		c.rig.api.Delete(&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: old}})
		return c.put1(h)
	}
	// A path under load moves to a Service that is new, and the one from before goes.
	was, name := h.swaps, fmt.Sprintf("twin%d", c.n)
	c.rig.twin(h.service, name)
	probe := name + ".example.com"
	c.rig.api.Put(loadIngress(probe, probe, "", 0, nil, "/ "+name))
	if err := c.until(probe, "/", 200, h.service); err != nil {
		return err
	}
	h.swaps = name
	if err := c.put1(h); err != nil {
		return err
	}
	c.rig.api.Delete(&networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: loadNamespace, Name: probe}})
	if was != h.service {
		c.rig.untwin(h.service, was)
	}
	return c.until(probe, "/", 404, "")
}

// rotate gives hosts new certificates, one after the other; each must be shown before the
// next comes, and none from before it after that.
func (c *loadClients) rotate(n int, pause time.Duration) (served []time.Duration, err error) {
	for k := range n {
		h := &c.hosts[k%len(c.hosts)]
		serial := int64(1000 + k)
		s, err := c.rig.ca.secret(fmt.Sprintf("tls%d", k%len(c.hosts)), h.name, serial)
		if err != nil {
			return served, err
		}
		start := time.Now()
		c.rig.api.Put(s)
		for {
			ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
			conn, shown, err := c.handshake(ctx, h, "http/1.1")
			cancel()
			if err != nil {
				c.fail("handshake with %s: %v", h.name, err)
			} else {
				conn.Close()
			}
			if shown == serial {
				break
			}
			if time.Since(start) > within {
				return served, fmt.Errorf("%s: certificate %d is not shown within %s, but %d", h.name, serial,
					within, shown)
			}
			time.Sleep(2 * time.Millisecond)
		}
		served = append(served, time.Since(start))
		h.shown.Store(serial)
		time.Sleep(pause)
	}
	return served, nil
}

// churn replaces pods of a Service, n at least and until stop is closed: a new one gets
// requests, then the oldest but the first leaves as pods do.
func (r *loadRig) churn(service string, n int, stop <-chan struct{}) (left, late int, err error) {
	for k := 0; ; k++ {
		select {
		case <-stop:
			if k >= n {
				return k, late, nil
			}
		default:
		}
		p, err := r.start(service)
		if err != nil {
			return k, late, err
		}
		var old *loadPod
		r.change(service, func(s *loadService) {
			s.pods = append(s.pods, p)
			old = s.pods[1]
		})
		for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			if n, err := r.begun(p); err != nil || n > 0 {
				if err != nil {
					return k, late, err
				}
				break
			}
			if time.Since(start) > within {
				return k, late, fmt.Errorf("pod %s gets no request within %s", p.name, within)
			}
		}
		r.change(service, func(*loadService) { old.leaving = true })
		gone := func() {
			r.change(service, func(s *loadService) {
				s.pods = slices.DeleteFunc(s.pods,
					func(p *loadPod) bool { return p == old })
			})
		}
		if k%2 == 0 { // it is out of the EndpointSlice before it stops
			gone()
		}
		some, err := r.end(old)
		if err != nil {
			return k, late, err
		}
		if k%2 == 1 {
			gone()
		}
		r.freed(old)
		late += some
	}
}

// loaded is a rig with two Services and four hosts under load.
func loaded(t *testing.T) (*loadClients, *changer) {
	r := newLoadRig(t)
	r.service("a", 3)
	r.service("b", 3)
	c := &loadClients{rig: r, rounds: 40}
	ch := &changer{loadClients: c, ask: &http.Client{Timeout: loadTimeout,
		Transport: &http.Transport{DialContext: r.dial}}}
	for i := range 4 {
		h := loadHost{name: fmt.Sprintf("app%d.example.com", i), service: string("aabb"[i]), shown: &atomic.Int64{}}
		c.hosts = append(c.hosts, h)
		s, err := r.ca.secret(fmt.Sprintf("tls%d", i), h.name, int64(10+i))
		if err != nil {
			t.Fatal(err)
		}
		r.api.Put(s)
		ch.hosts = append(ch.hosts, changedHost{loadHost: h, i: i, moves: "a", swaps: h.service})
		ch.put(&ch.hosts[i])
	}
	for i := range c.hosts {
		h := &c.hosts[i]
		testnet.Eventually(t, within, func() error {
			if status, service, err := ch.get(h.name, "/"); err != nil || status != 200 || service != h.service {
				return fmt.Errorf("%s: %d by %q, %w", h.name, status, service, err)
			}
			conn, _, err := c.handshake(t.Context(), h, "h2")
			if err == nil {
				conn.Close()
			}
			return err
		})
		h.shown.Store(int64(10 + i))
	}
	t.Cleanup(ch.ask.CloseIdleConnections)
	c.before = c.counted(t)
	return c, ch
}

// A load with its own clock, at half of what the rig can do, goes through changes of all
// that routes: no request and no connection is lost, no answer is another Service's, no
// certificate another host's, and WebSockets live on.
func TestIngressUnderLoad(t *testing.T) {
	plan := loadPlanOf()
	c, ch := loaded(t)
	most := c.most(plan.most)
	stop := make(chan struct{})
	sockets := c.sockets(t, 20, c.rig.services["a"].pods[0].name, stop)
	slow := c.slowly(4, stop)
	c.opened.Store(0)
	before := machineLoad()
	o := c.open(most / 2)
	var acts sync.WaitGroup
	var rotated []time.Duration
	var left, late atomic.Int64
	var errs [4]error
	acts.Go(func() {
		for range plan.changes {
			if errs[0] = ch.change(); errs[0] != nil {
				return
			}
			time.Sleep(plan.pause)
		}
	})
	acts.Go(func() { rotated, errs[1] = c.rotate(plan.rotations, 5*plan.pause) })
	churned := make(chan struct{})
	var churns sync.WaitGroup
	for i, service := range []string{"a", "b"} {
		churns.Go(func() {
			n, some, err := c.rig.churn(service, plan.pods/2, churned)
			left.Add(int64(n))
			late.Add(int64(some))
			errs[2+i] = err
		})
	}
	acts.Wait()
	close(churned)
	churns.Wait()
	o.end()
	close(stop)
	slow()
	sockets()
	if err := errors.Join(errs[:]...); err != nil {
		t.Error(err)
	}
	c.report(t)
	c.proxyAgrees(t)
	if late.Load() == 0 || len(rotated) < plan.rotations || c.messages.Load() == 0 {
		t.Errorf("%d answers were on their way when pods left, %d certificates changed, %d messages: the test would "+
			"not see a loss", late.Load(), len(rotated), c.messages.Load())
	}
	slices.Sort(ch.served)
	slices.Sort(rotated)
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/1e6) }
	t.Logf("%d requests in %.1f s: %.0f a second, half of %.0f; %.0f connections a second; load of the machine %s "+
		"before, %s after", len(o.took), o.lasts.Seconds(), o.rate, most,
		float64(c.opened.Load())/o.lasts.Seconds(), before, machineLoad())
	t.Logf("latency from the time that was set: p50 %s, p99 %s, p99.9 %s, most %s", ms(quantile(o.took, 0.5)),
		ms(quantile(o.took, 0.99)), ms(quantile(o.took, 0.999)), ms(quantile(o.took, 1)))
	t.Logf("%d changes of routes (served after %s, p99 %s), %d of certificates (%s, p99 %s), %d pods replaced (%d "+
		"answers on their way then), %d slow answers, %d messages by 20 WebSockets", ch.n,
		ms(quantile(ch.served, 0.5)), ms(quantile(ch.served, 0.99)), len(rotated), ms(quantile(rotated, 0.5)),
		ms(quantile(rotated, 0.99)), left.Load(), late.Load(), c.slow.Load(), c.messages.Load())
}

// machineLoad is that of the last minute.
func machineLoad() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err.Error()
	}
	return strings.Fields(string(raw))[0]
}

// counted are the counts of the proxy that a load must not move.
func (c *loadClients) counted(t *testing.T) map[string]float64 {
	t.Helper()
	text, code, err := agent.Ask(t.Context(), filepath.Join(c.rig.dir, "health.sock"), "/metrics")
	if err != nil || code != http.StatusOK {
		t.Errorf("metrics: %d, %v", code, err)
		return nil
	}
	out := map[string]float64{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.ParseFloat(value, 64)
		switch {
		case strings.HasPrefix(key, "wayleave_proxy_requests_total") && strings.Contains(key, `host="app`) &&
			!strings.Contains(key, `status="2xx"`) && !strings.Contains(key, `status="1xx"`),
			strings.HasPrefix(key, "wayleave_proxy_refused_total"):
			out[key] = n
		case strings.HasPrefix(key, "wayleave_proxy_upstream_"):
			t.Logf("%s %v", key, n)
		}
	}
	return out
}

// proxyAgrees compares with what the proxy counted since all hosts were served: before that,
// a host is closed until its Secret has been read.
func (c *loadClients) proxyAgrees(t *testing.T) {
	t.Helper()
	for key, n := range c.counted(t) {
		if n > c.before[key] {
			t.Errorf("the proxy counts %s %v, %v before the load", key, n, c.before[key])
		}
	}
}

// h2load is a client that others wrote: it loses nothing either while routes and
// certificates change.
func TestH2load(t *testing.T) {
	testnet.Need(t, "h2load")
	c, ch := loaded(t)
	stop := make(chan struct{})
	var acts sync.WaitGroup
	var errs [2]error
	acts.Go(func() {
		for errs[0] == nil {
			select {
			case <-stop:
				return
			case <-time.After(25 * time.Millisecond):
				errs[0] = ch.change()
			}
		}
	})
	acts.Go(func() {
		_, errs[1] = c.rotate(20, 50*time.Millisecond)
	})
	status := regexp.MustCompile(`(?m)^requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, ` +
		`(\d+) errored, (\d+) timeout$`)
	n := 600
	if os.Getenv("WAYLEAVE_TEST_LONG") != "" {
		n = 6000
	}
	for _, args := range [][]string{{"--h1"}, {"-m", "16"}, {"-m", "1"}} {
		for _, url := range []string{"https://app0.example.com/", "https://app2.example.com/big",
			"https://app1.example.com/moves/x"} {
			line := append([]string{"-n", strconv.Itoa(n / 3), "-c", "16", "-t", "1", "--connection-active-timeout=60s",
				"--connect-to=" + loadHTTPS}, append(args, url)...)
			out, err := c.rig.ns.Try("h2load", line...)
			m := status.FindStringSubmatch(out)
			if want := strconv.Itoa(n / 3); err != nil || m == nil || m[1] != want || m[2] != want || m[3] != "0" ||
				m[4] != "0" || m[5] != "0" || !strings.Contains(out, "status codes: "+want+" 2xx") {
				t.Errorf("h2load %s: %v: %s", strings.Join(line, " "), err, out)
			}
		}
	}
	close(stop)
	acts.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Error(err)
	}
	c.report(t)
	t.Logf("%d requests by h2load through %d changes of routes", 3*n, ch.n)
	c.proxyAgrees(t)
}
