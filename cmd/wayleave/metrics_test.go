package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	prom "github.com/prometheus/common/model"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/config"
	"wayleave.dev/dns"
	dnsschema "wayleave.dev/dns/schema"
	"wayleave.dev/internal/buildinfo"
	"wayleave.dev/internal/metricdocs"
	"wayleave.dev/internal/scrape"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/loadbalancer/peers"
	"wayleave.dev/model"
	"wayleave.dev/statusserver"
)

// scraped is a node whose processes run, with the port that serves their metrics.
type scraped struct {
	t       *testing.T
	addr    string
	killDNS func()
}

// heartbeats is a feature whose only part is the process l2, which the test supervises.
type heartbeats struct{ *speaker.Supervisor }

func (heartbeats) Name() string                    { return "heartbeats" }
func (heartbeats) Enabled(config.Config) bool      { return true }
func (heartbeats) Kinds(config.Config) agent.Kinds { return agent.Kinds{} }
func (h heartbeats) Processes() map[string]bool    { return map[string]bool{"l2": h.Report().Running} }

// readerToken is what the API server of the tests accepts.
const readerToken = "token.of.prometheus"

// newScraped starts the real processes dns, proxy, l2 and status-server. The test is the agent.
func newScraped(t *testing.T) *scraped {
	t.Helper()
	dnsDir, proxyHome := t.TempDir(), proxyDir(t)
	s := &scraped{t: t, addr: freeAddr(t)}
	quiet := slog.New(slog.DiscardHandler)
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	beats := speaker.New(quiet, "l2")
	node := &agent.Node{Name: "node1", Core: agent.NewCore(quiet, store, config.Default(),
		append(features.All(), heartbeats{beats}))}
	_ = node.Health("service") // has not synced yet
	reg := prometheus.NewRegistry()
	buildinfo.Register(reg, version)
	reg.MustRegister(agent.Collectors(node)...)
	self := netip.MustParseAddrPort(freeAddr(t))
	beats.Set(speaker.State{Node: "node1", Keys: [][]byte{rigKey}, Port: self.Port(),
		Peers: []peers.Peer{{Name: "node1", Addrs: []netip.Addr{self.Addr()}}}})
	status := &statusserver.Supervisor{Args: []string{"status-server"}, Log: quiet, Version: version,
		Ports: func() []statusserver.Port {
			return []statusserver.Port{{Name: s.addr, Token: true,
				Pages: map[string]statusserver.Page{"/metrics": statusserver.AllMetrics}}}
		},
		Sources: []statusserver.Source{
			{Name: "dns", Prefixes: []string{"coredns_", "wayleave_dns_"}, Socket: filepath.Join(dnsDir,
				"metrics.sock")},
			{Name: "proxy", Prefixes: []string{"wayleave_proxy_"}, Socket: filepath.Join(proxyHome, "metrics.sock"),
				UID: proxyTestUser}},
		ListenSource: listenForAll, Say: func(string, error) {},
		Render: func(statusserver.Page) statusserver.Answer { return rendered(t, reg, beats) },
		Review: func(_ context.Context, token string) int {
			if token == readerToken {
				return http.StatusOK
			}
			return http.StatusUnauthorized
		}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = agent.All(ctx, status.Run, beats.Run) }()
	t.Cleanup(func() { cancel(); <-done })
	f := &dns.Feed{Log: quiet, Open: dns.OpenSocket}
	f.Configure(dnsschema.Settings{Domains: []string{"cluster.local."}, Forwarding: dnsschema.Forwarding{
		Upstreams: []model.Nameserver{{Addr: netip.MustParseAddrPort("127.0.0.1:9")}}}})
	serveFeed(t, f, filepath.Join(dnsDir, "dns.sock"))
	s.killDNS = startDNS(t, dnsDir)
	startProxy(t, testBinary(t, proxyHome), proxyHome)
	return s
}

// listenForAll makes a socket that other users may connect to, as agent.ListenChild does.
func listenForAll(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o666)
}

// rendered is the page of the agent, with the metrics of l2, which it reports.
func rendered(t *testing.T, agents prometheus.Gatherer, beats *speaker.Supervisor) statusserver.Answer {
	of := prometheus.NewRegistry()
	of.MustRegister(beats)
	families, err := prometheus.Gatherers{agents, of}.Gather()
	if err != nil {
		t.Error(err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Error(err)
		}
	}
	return statusserver.Text(b.String())
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// scrape returns the metrics as a scraper with a token gets them.
func (s *scraped) scrape() (string, error) {
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // the certificate signs itself
	q, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "https://"+s.addr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	q.Header.Set("Authorization", "Bearer "+readerToken)
	resp, err := c.Do(q)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// eventually scrapes until the metrics have each line. A source has few handshakes in a second.
func (s *scraped) eventually(lines ...string) (text string) {
	s.t.Helper()
	testnet.Eventually(s.t, 60*time.Second, func() (err error) {
		time.Sleep(500 * time.Millisecond)
		if text, err = s.scrape(); err != nil {
			return err
		}
		for _, line := range lines {
			if !strings.Contains(text, line) {
				return fmt.Errorf("no %q in %d bytes", line, len(text))
			}
		}
		return nil
	})
	return text
}

// allUp are lines that say that each process gave its metrics.
var allUp = []string{`wayleave_process_up{process="agent"} 1`, `wayleave_process_up{process="dns"} 1`,
	`wayleave_process_up{process="proxy"} 1`, `wayleave_process_up{process="l2"} 1`,
	`wayleave_feature_failing{feature="service",process="agent"} 1`, `wayleave_dns_forward_up{`}

// One scrape has the metrics of the running processes. Each is in docs/metrics.md with its type, labels and process,
// and promtool accepts them. A killed process costs its own metrics alone.
func TestOneScrapeHasEveryProcess(t *testing.T) {
	testnet.Need(t, "promtool")
	s := newScraped(t)
	text := s.eventually(allUp...)
	parser := expfmt.NewTextParser(prom.LegacyValidation)
	live, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compareWithPage(t, live)
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	for _, p := range []string{"agent", "dns", "proxy", "status-server"} {
		if !strings.Contains(text, fmt.Sprintf("process_resident_memory_bytes{process=%q}", p)) {
			t.Errorf("%s does not tell its memory", p)
		}
	}
	s.killDNS()
	text = s.eventually(`wayleave_process_up{process="dns"} 0`, allUp[0], allUp[2], allUp[3],
		"wayleave_proxy_connections{", "wayleave_l2_restarts_total{")
	if strings.Contains(text, "coredns_") {
		t.Error("metrics of a dead process are served")
	}
}

// compareWithPage compares live metrics with those of docs/metrics.md.
func compareWithPage(t *testing.T, live map[string]*dto.MetricFamily) {
	t.Helper()
	documented, err := metricdocs.All()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for name, f := range live {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		seen++
		i := slices.IndexFunc(documented, func(m metricdocs.Metric) bool { return m.Name == name })
		if i < 0 {
			t.Errorf("%s is not in %s", name, metricdocs.File)
			continue
		}
		want := documented[i]
		if kind := strings.ToLower(f.GetType().String()); kind != want.Type {
			t.Errorf("%s is a %s; %s says %s", name, kind, metricdocs.File, want.Type)
		}
		for _, m := range f.Metric {
			comparesLabels(t, want, m)
		}
	}
	if seen < 45 {
		t.Errorf("only %d metrics were compared", seen)
	}
}

func comparesLabels(t *testing.T, want metricdocs.Metric, m *dto.Metric) {
	t.Helper()
	var labels []string
	for _, l := range m.Label {
		switch {
		case l.GetName() != scrape.ProcessLabel:
			labels = append(labels, l.GetName())
		case want.Name != "wayleave_process_up" && !slices.Contains(want.Processes, l.GetValue()):
			t.Errorf("%s is of %s; %s says %v", want.Name, l.GetValue(), metricdocs.File, want.Processes)
		}
	}
	documented := slices.DeleteFunc(slices.Clone(want.Labels), func(l string) bool { return l == scrape.ProcessLabel })
	slices.Sort(labels)
	slices.Sort(documented)
	if !slices.Equal(labels, documented) {
		t.Errorf("%s has labels %v; %s says %v", want.Name, labels, metricdocs.File, documented)
	}
}

// A real Prometheus scrapes the node with the job of docs/metrics.md: its target is up, without an error.
func TestPrometheusScrapesANode(t *testing.T) {
	testnet.Need(t, "prometheus")
	s := newScraped(t)
	s.eventually(allUp...)
	dir, web := t.TempDir(), freeAddr(t)
	token := filepath.Join(dir, "token")
	job := fmt.Sprintf("global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n%s",
		jobOfTheDocs(t, token, s.addr))
	for name, text := range map[string]string{token: readerToken, filepath.Join(dir, "prometheus.yml"): job} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+web)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for query, want := range map[string]int{`up{job="wayleave"} == 1`: 1, `wayleave_process_up == 1`: 4,
		`count by (process) (process_resident_memory_bytes)`: 4, `coredns_cache_entries{process="dns"}`: 1,
		`scrape_samples_post_metric_relabeling{job="wayleave"} > 150`: 1} {
		testnet.Eventually(t, 90*time.Second, func() error {
			n, err := ask(t, web, query)
			if err != nil || n != want {
				return fmt.Errorf("%s: %d results, %w; want %d", query, n, err, want)
			}
			return nil
		})
	}
	errs, err := ask(t, web, `up{job="wayleave"} == 0`)
	if err != nil || errs != 0 {
		t.Errorf("%d targets are down: %v\n%s", errs, err, out.String())
	}
}

// jobOfTheDocs is the job of docs/metrics.md, with a token and a target of this machine.
func jobOfTheDocs(t *testing.T, token, target string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, job, ok := strings.Cut(string(page), "    - job_name: wayleave\n")
	if !ok {
		t.Fatal("docs/metrics.md has no job")
	}
	job, _, _ = strings.Cut(job, "      kubernetes_sd_configs:")
	job = strings.ReplaceAll("    - job_name: wayleave\n"+job,
		"/var/run/secrets/kubernetes.io/serviceaccount/token", token)
	return job + fmt.Sprintf("      static_configs: [{targets: [%q]}]\n", target)
}

// ask returns how many results a query has.
func ask(t *testing.T, web, query string) (int, error) {
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		"http://"+web+"/api/v1/query?query="+url.QueryEscape(query), nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct {
			Result []json.RawMessage `json:"result"`
		} `json:"data"`
	}
	err = json.NewDecoder(resp.Body).Decode(&answer)
	return len(answer.Data.Result), err
}
