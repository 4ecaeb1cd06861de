package metricdocs

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/config"
	"wayleave.dev/model"
)

// A registry takes the metrics of all features together: otherwise no agent starts.
func TestTheAgentCanRegisterItsMetrics(t *testing.T) {
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	node := &agent.Node{Core: agent.NewCore(slog.New(slog.DiscardHandler), store, config.Default(), features.All())}
	registry := prometheus.NewRegistry()
	for _, c := range agent.Collectors(node) {
		if err := registry.Register(c); err != nil {
			t.Error(err)
		}
	}
}

// docs/metrics.md is what `make gen` writes.
func TestThePageOfMetricsIsFresh(t *testing.T) {
	want, err := Page()
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(filepath.Join("..", "..", File))
	if err != nil || !bytes.Equal(have, want) {
		t.Errorf("%s is stale (%v); run `make gen`", File, err)
	}
}

// Names follow Prometheus' rules, and only names of kube-proxy and CoreDNS lack the prefix of Wayleave.
func TestNamesOfMetrics(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Errorf("only %d metrics are listed", len(all))
	}
	// Those that mean the same there.
	others := []string{"kubeproxy_sync_full_proxy_rules_duration_seconds",
		"kubeproxy_sync_proxy_rules_duration_seconds",
		"kubeproxy_sync_proxy_rules_last_timestamp_seconds", "coredns_autopath_success_total", "coredns_cache_entries",
		"coredns_cache_evictions_total", "coredns_cache_hits_total", "coredns_cache_misses_total",
		"coredns_cache_prefetch_total", "coredns_cache_served_stale_total", "coredns_dns_request_duration_seconds",
		"coredns_dns_requests_total", "coredns_dns_responses_total", "coredns_forward_requests_total"}
	valid := regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	for _, m := range all {
		if !strings.HasPrefix(m.Name, "wayleave_") && !slices.Contains(others, m.Name) {
			t.Errorf("%s: the prefix is wayleave_", m.Name)
		}
		if !valid.MatchString(m.Name) || strings.HasSuffix(m.Name, "_total") != (m.Type == "counter") {
			t.Errorf("%s: a %s is not named so", m.Name, m.Type)
		}
		for _, unit := range []string{"milliseconds", "_ms", "_kb", "_mib", "_minutes"} {
			if strings.Contains(m.Name, unit) {
				t.Errorf("%s: %s is no base unit", m.Name, unit)
			}
		}
		if m.Help == "" || !strings.HasSuffix(m.Help, ".") || len(m.Processes) == 0 {
			t.Errorf("%s: help %q, processes %v", m.Name, m.Help, m.Processes)
		}
		if slices.Contains(m.Labels, "process") && m.Name != "wayleave_process_up" {
			t.Errorf("%s: the label process is set by the scrape port", m.Name)
		}
	}
}
