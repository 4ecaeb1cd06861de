package report

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"wayleave.dev/reconcile"
)

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	r := Report{Version: "v1", Node: "node1", Role: "owner", Mode: "nftables", Routing: "direct", Encryption: "none",
		Kernel: map[string]string{"release": "6.18"}, APIServer: "https://10.0.0.1:6443 (kubelet)",
		Objects: map[string]int{"Service": 3},
		Features: map[string]reconcile.State{
			"service": {Synced: true, Keys: 3, LastApplied: now.Add(-time.Minute),
				LastTook: 1230 * time.Microsecond, Repairs: 2},
			"dns": {Keys: 3, LastApplied: now, Error: "no socket", ErrorSince: now.Add(-5 * time.Second)}},
		Facts: map[string][]string{"dns": {"1 process"}}, Off: []string{"podnetwork"},
		Wrong: []string{"dns: no socket"}, Notes: []string{"NetworkPolicy shop/idle: spec.podSelector: selects no pod"}}
	want := `wayleave v1 on node1 (owner)
mode: nftables  routing: direct  encryption: none
API server: https://10.0.0.1:6443 (kubelet)
kernel: release 6.18
objects: Service 3
dns: failing since 5s, 3 programmed, last change 0s ago in 0s
  1 process
service: in sync, 3 programmed, last change 1m0s ago in 1.23ms, 2 foreign changes repaired
switched off: podnetwork
without effect:
  - NetworkPolicy shop/idle: spec.podSelector: selects no pod
wrong:
  - dns: no socket
`
	if got := r.Text(now); got != want {
		t.Errorf("status is\n%s\nwant\n%s", got, want)
	}
	r.Wrong = nil
	if got := r.Text(now); !strings.HasSuffix(got, "\nnothing is wrong\n") {
		t.Errorf("with nothing wrong it ends: %s", got)
	}
}

// The rows of tables are keys of the JSON beside the others, as they were before there was a registry of features.
func TestTablesAreKeysOfTheStatus(t *testing.T) {
	r := Report{Node: "node1", Objects: map[string]int{"Service": 3}}
	r.AddRows("vips", []string{"192.0.2.10"})
	r.AddRows("policies", nil)
	r.AddRows("empty", []int{})
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for want, there := range map[string]bool{`"node":"node1"`: true, `"vips":["192.0.2.10"]`: true,
		`"objects":{"Service":3}`: true, `"policies"`: false, `"empty"`: false} {
		if strings.Contains(string(raw), want) != there {
			t.Errorf("%s is in the status: %v, want %v: %s", want, !there, there, raw)
		}
	}
	var back Report
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if back.Node != r.Node || string(back.Lists["vips"]) != `["192.0.2.10"]` {
		t.Errorf("read again it is %+v", back)
	}
}
