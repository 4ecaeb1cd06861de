package config

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"wayleave.dev/model"
)

// The port of metrics is none by default, and never one that a component of a node has.
func TestThePortOfMetricsIsFree(t *testing.T) {
	if c := Default(); c.Metrics.Port != 0 || len(c.Metrics.AllowFrom) != 0 {
		t.Errorf("by default, metrics are served: %+v", c.Metrics)
	}
	for port := range 1 << 16 {
		used := model.ReservedPort(model.TCP, uint16(port)) != ""
		if port%97 != 0 && !used {
			continue // each taken port, and some others
		}
		c, err := Parse(fmt.Appendf(nil, "metrics: {port: %d, allowFrom: [192.0.2.0/24]}", port))
		if used != (err != nil) || !used && c.Metrics.Port != port {
			t.Errorf("%d: %d, %v", port, c.Metrics.Port, err)
		}
		if want := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}; err == nil &&
			!slices.Equal(c.Metrics.AllowFrom, want) {
			t.Errorf("%d: %v", port, c.Metrics.AllowFrom)
		}
	}
	for _, bad := range []string{"-1", "65536", "1.5", "true", "[]", `"10247"`} {
		if _, err := Parse([]byte("metrics: {port: " + bad + "}")); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	for _, bad := range []string{"[10.0.0.1]", "[10.0.0.1/24]", "10.0.0.0/8", "[all]"} {
		if _, err := Parse([]byte("metrics: {allowFrom: " + bad + "}")); err == nil {
			t.Errorf("allowFrom %s is accepted", bad)
		}
	}
}
