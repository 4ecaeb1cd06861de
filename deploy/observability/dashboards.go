package observability

// Dashboard is a dashboard of Grafana.
type Dashboard struct {
	// Name is that of the file, and part of the unique name in Grafana.
	Name, Title string
	// PerNode has a variable for the node.
	PerNode bool
	Panels  []Panel
}

// Panel is one picture of a dashboard.
type Panel struct {
	Title string
	// Unit is one of Grafana's: short, s, reqps, pps, bytes, percentunit.
	Unit string
	// Stat shows the last value only.
	Stat    bool
	Queries []Query
}

// Query is an expression of Prometheus, and the legend of its series.
type Query struct{ Expr, Legend string }

func one(title, unit, expr, legend string) Panel {
	return Panel{Title: title, Unit: unit, Queries: []Query{{expr, legend}}}
}

func stat(title, expr string) Panel {
	return Panel{Title: title, Unit: "short", Stat: true, Queries: []Query{{expr, ""}}}
}

// Dashboards returns all dashboards: cluster, node, DNS and Ingress.
func Dashboards() []Dashboard {
	return []Dashboard{cluster(), node(), clusterDNS(), ingress()}
}

func cluster() Dashboard {
	return Dashboard{Name: "cluster", Title: "Wayleave / Cluster", Panels: []Panel{
		stat("Nodes scraped", `sum(up{job="wayleave"})`),
		stat("Nodes without metrics", `count(up{job="wayleave"} == 0) or vector(0)`),
		stat("Processes down", `count(wayleave_process_up{job="wayleave"} == 0) or vector(0)`),
		stat("Features failing", `sum(wayleave_feature_failing{job="wayleave"})`),
		stat("Problems", `sum(wayleave_problems{job="wayleave"})`),
		stat("LoadBalancer Services without an address",
			`max(wayleave_loadbalancer_services{job="wayleave",state="waiting"})`),
		one("Versions", "short", `count by (version) (wayleave_build_info{job="wayleave",process="agent"})`,
			"{{version}}"),
		one("Failing features", "short",
			`sum by (instance, feature) (wayleave_feature_failing{job="wayleave"}) > 0`, "{{instance}} {{feature}}"),
		one("Change to commit, 99th percentile", "s", `histogram_quantile(0.99, sum by (feature, le) (`+
			`rate(wayleave_apply_duration_seconds_bucket{job="wayleave"}[$__rate_interval])))`, "{{feature}}"),
		one("Repaired foreign changes", "short",
			`sum by (instance, feature) (increase(wayleave_events_total{job="wayleave",event="repair"}[1h]))`,
			"{{instance}} {{feature}}"),
		one("Packets dropped by policies", "pps", `topk(10, sum by (namespace, pod, direction) (`+
			`rate(wayleave_networkpolicy_dropped_packets_total{job="wayleave"}[$__rate_interval])))`,
			"{{namespace}}/{{pod}} {{direction}}"),
		one("Load-balancer addresses by node", "short", `wayleave_l2_owned_vips{job="wayleave"}`, "{{instance}}"),
		one("Peers without heartbeats", "short", `wayleave_peers{job="wayleave",state="dead"}`, "{{instance}}"),
		one("Addresses of pools in use", "short", `max by (pool) (wayleave_address_pool_used{job="wayleave"})`,
			"{{pool}}"),
	}}
}

func node() Dashboard {
	return Dashboard{Name: "node", Title: "Wayleave / Node", PerNode: true, Panels: []Panel{
		one("Processes", "short", `wayleave_process_up{job="wayleave",instance=~"$instance"}`,
			"{{instance}} {{process}}"),
		one("Features failing", "short", `wayleave_feature_failing{job="wayleave",instance=~"$instance"}`,
			"{{instance}} {{feature}}"),
		one("Memory", "bytes", `process_resident_memory_bytes{job="wayleave",instance=~"$instance"}`,
			"{{instance}} {{process}}"),
		one("CPU", "short",
			`rate(process_cpu_seconds_total{job="wayleave",instance=~"$instance"}[$__rate_interval])`,
			"{{instance}} {{process}}"),
		one("Open files", "short", `process_open_fds{job="wayleave",instance=~"$instance"}`,
			"{{instance}} {{process}}"),
		one("Goroutines", "short", `go_goroutines{job="wayleave",instance=~"$instance"}`, "{{instance}} {{process}}"),
		one("Changes of Services, 99th percentile", "s", `histogram_quantile(0.99, sum by (instance, le) (`+
			`rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{job="wayleave",instance=~"$instance"}`+
			`[$__rate_interval])))`, "{{instance}}"),
		one("Errors and repairs", "short", `sum by (instance, feature, event) (`+
			`increase(wayleave_events_total{job="wayleave",instance=~"$instance"}[$__rate_interval]))`,
			"{{instance}} {{feature}} {{event}}"),
		one("Path MTU", "bytes", `wayleave_path_mtu_bytes{job="wayleave",instance=~"$instance"}`,
			"{{instance}} to {{node}}"),
		one("Load-balancer addresses taken over", "short",
			`increase(wayleave_l2_takeovers_total{job="wayleave",instance=~"$instance"}[1h])`, "{{instance}}"),
	}}
}

func clusterDNS() Dashboard {
	return Dashboard{Name: "dns", Title: "Wayleave / DNS", PerNode: true, Panels: []Panel{
		one("Queries", "reqps", `sum by (instance, proto) (`+
			`rate(coredns_dns_requests_total{job="wayleave",instance=~"$instance"}[$__rate_interval]))`,
			"{{instance}} {{proto}}"),
		one("Responses", "reqps", `sum by (rcode) (`+
			`rate(coredns_dns_responses_total{job="wayleave",instance=~"$instance"}[$__rate_interval]))`, "{{rcode}}"),
		one("Time per query, 99th percentile", "s", `histogram_quantile(0.99, sum by (instance, le) (`+
			`rate(coredns_dns_request_duration_seconds_bucket{job="wayleave",instance=~"$instance"}`+
			`[$__rate_interval])))`, "{{instance}}"),
		one("Types", "reqps", `sum by (type) (`+
			`rate(coredns_dns_requests_total{job="wayleave",instance=~"$instance"}[$__rate_interval]))`, "{{type}}"),
		one("Cache hits", "percentunit", `sum by (instance) (`+
			`rate(coredns_cache_hits_total{job="wayleave",instance=~"$instance"}[$__rate_interval])) / (sum `+
			`by (instance) (`+
			`rate(coredns_cache_hits_total{job="wayleave",instance=~"$instance"}[$__rate_interval])) + sum `+
			`by (instance) (`+
			`rate(coredns_cache_misses_total{job="wayleave",instance=~"$instance"}[$__rate_interval])))`,
			"{{instance}}"),
		one("Expired answers served", "reqps",
			`rate(coredns_cache_served_stale_total{job="wayleave",instance=~"$instance"}[$__rate_interval])`,
			"{{instance}}"),
		one("Upstream servers that answer", "short",
			`wayleave_dns_forward_up{job="wayleave",instance=~"$instance"}`, "{{instance}} {{to}}"),
		one("Failures of upstream servers", "reqps", `sum by (to) (`+
			`rate(wayleave_dns_forward_failures_total{job="wayleave",instance=~"$instance"}[$__rate_interval]))`,
			"{{to}}"),
		one("Pods that ask most", "reqps", `topk(10, sum by (namespace, pod) (`+
			`rate(wayleave_dns_pod_queries_total{job="wayleave",instance=~"$instance"}[$__rate_interval])))`,
			"{{namespace}}/{{pod}}"),
		one("Refused: too many wait", "reqps",
			`rate(wayleave_dns_overload_total{job="wayleave",instance=~"$instance"}[$__rate_interval])`,
			"{{instance}}"),
	}}
}

func ingress() Dashboard {
	return Dashboard{Name: "ingress", Title: "Wayleave / Ingress", PerNode: true, Panels: []Panel{
		one("Requests by status", "reqps", `sum by (status) (`+
			`rate(wayleave_proxy_requests_total{job="wayleave",instance=~"$instance"}[$__rate_interval]))`,
			"{{status}}"),
		one("Requests by host", "reqps", `topk(10, sum by (host) (`+
			`rate(wayleave_proxy_requests_total{job="wayleave",instance=~"$instance"}[$__rate_interval])))`,
			"{{host}}"),
		one("5xx by host", "reqps", `topk(10, sum by (host) (`+
			`rate(wayleave_proxy_requests_total{job="wayleave",instance=~"$instance",status="5xx"}`+
			`[$__rate_interval])))`,
			"{{host}}"),
		{Title: "Time per request", Unit: "s", Queries: []Query{{`histogram_quantile(0.5, sum by (le) (rate(` +
			`wayleave_proxy_request_duration_seconds_bucket{job="wayleave",instance=~"$instance"}[$__rate_interval])))`,
			"median"}, {`histogram_quantile(0.99, sum by (le) (rate(` +
			`wayleave_proxy_request_duration_seconds_bucket{job="wayleave",instance=~"$instance"}[$__rate_interval])))`,
			"99th percentile"}}},
		one("Bytes of responses", "bytes",
			`rate(wayleave_proxy_response_bytes_total{job="wayleave",instance=~"$instance"}[$__rate_interval])`,
			"{{instance}}"),
		{Title: "Connections", Unit: "short", Queries: []Query{
			{`wayleave_proxy_connections{job="wayleave",instance=~"$instance"}`, "{{instance}} open"},
			{`wayleave_proxy_connections_waiting{job="wayleave",instance=~"$instance"}`, "{{instance}} waiting"},
			{`wayleave_proxy_tunnels{job="wayleave",instance=~"$instance"}`, "{{instance}} upgraded"}}},
		one("Refused", "reqps", `sum by (reason) (`+
			`rate(wayleave_proxy_refused_total{job="wayleave",instance=~"$instance"}[$__rate_interval]))`,
			"{{reason}}"),
		{Title: "Endpoints", Unit: "reqps", Queries: []Query{
			{`rate(wayleave_proxy_upstream_failures_total{job="wayleave",instance=~"$instance"}[$__rate_interval])`,
				"{{instance}} failures"},
			{`rate(wayleave_proxy_upstream_retries_total{job="wayleave",instance=~"$instance"}[$__rate_interval])`,
				"{{instance}} retries"}}},
		one("Certificates", "short",
			`max by (state) (wayleave_proxy_certificates{job="wayleave",instance=~"$instance"})`,
			"{{state}}"),
	}}
}
