package judge

import (
	"maps"
	"math"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

// The API server refuses by CEL what can never be meant, and says what is allowed. The schema (types, ranges, enums) is
// checked apart from that.
func TestBGPByCEL(t *testing.T) {
	peer := map[string]any{"address": "192.0.2.1", "asn": int64(64512)}
	for _, c := range []struct {
		kind, name string
		spec       map[string]any
		// without is a field of peer that is left out.
		without, want string
	}{
		{"bgppeer", "p", nil, "", ""},
		{"bgppeer", "p", map[string]any{"interface": "eth0"}, "address", ""},
		{"bgppeer", "p", map[string]any{"addressRange": "2001:db8::/120"}, "address", ""},
		{"bgppeer", "p", map[string]any{"asnType": "External"}, "asn", ""},
		{"bgppeer", "p", map[string]any{"holdTime": "9s", "keepaliveTime": "3s"}, "", ""},
		{"bgppeer", "p", map[string]any{"holdTime": "0s"}, "", "3s to 65535s"},
		{"bgppeer", "p", map[string]any{"addressRange": "192.0.0.0/23"}, "address", "up to 256 addresses"},
		{"bgppeer", "p", map[string]any{"addressRange": "2001:db8::/119"}, "address", "up to 256 addresses"},
		{"bgppeer", "p", map[string]any{"gracefulRestart": map[string]any{"restartTime": "4095s"}}, "", ""},
		{"bgppeer", "p", map[string]any{"import": map[string]any{"networks": []any{"10.0.0.0/8"}}}, "", ""},
		{"bgppeer", "p", nil, "address", "exactly one of address"},
		{"bgppeer", "p", map[string]any{"interface": "eth0"}, "", "exactly one of address"},
		{"bgppeer", "p", nil, "asn", "exactly one of asn"},
		{"bgppeer", "p", map[string]any{"asnType": "External"}, "", "exactly one of asn"},
		{"bgppeer", "p", map[string]any{"address": "fe80::1"}, "", "not link-local"},
		{"bgppeer", "p", map[string]any{"address": "tor1"}, "", "an IPv4 or IPv6 address"},
		{"bgppeer", "p", map[string]any{"addressRange": "192.0.2.1/24"}, "address", "without host bits"},
		{"bgppeer", "p", map[string]any{"addressRange": "192.0.2.0/24", "port": int64(1)}, "address", "no meaning"},
		{"bgppeer", "p", map[string]any{"asn": int64(23456)}, "", "reserved"},
		{"bgppeer", "p", map[string]any{"ttlSecurity": int64(1), "ebgpMultiHop": int64(2)}, "", "exclude each other"},
		{"bgppeer", "p", map[string]any{"holdTime": "2s"}, "", "3s to 65535s"},
		{"bgppeer", "p", map[string]any{"holdTime": "9s", "keepaliveTime": "4s"}, "", "a third of holdTime"},
		{"bgppeer", "p", map[string]any{"gracefulRestart": map[string]any{"restartTime": "4096s"}}, "", "1s to 4095s"},
		{"bgppeer", "p", map[string]any{"import": map[string]any{"networks": []any{"10.0.0.1/8"}}}, "", "host bits"},
		{"bgpconfiguration", "default", map[string]any{"asn": int64(4200000000)}, "", ""},
		{"bgpconfiguration", "other", map[string]any{"asn": int64(64512)}, "", "the name must be default"},
		{"bgpconfiguration", "default", map[string]any{"asn": int64(65535)}, "", "reserved"},
		{"bgpconfiguration", "default", map[string]any{"nodeASNs": []any{map[string]any{"asn": int64(65535)}}}, "",
			"reserved"},
		{"bgpadvertisement", "a", map[string]any{"largeCommunities": []any{"64512:1:2"}}, "", ""},
		{"bgpadvertisement", "a", map[string]any{"largeCommunities": []any{"64512:1"}}, "", "three numbers"},
	} {
		_, s := definition(t, c.kind)
		spec := map[string]any{}
		if c.kind == "bgppeer" {
			maps.Copy(spec, peer)
			delete(spec, c.without)
		}
		maps.Copy(spec, c.spec)
		errs, _ := cel.NewValidator(s, true, celconfig.PerCallLimit).Validate(t.Context(), nil, s,
			map[string]any{"metadata": map[string]any{"name": c.name}, "spec": spec}, nil, math.MaxInt64)
		err := errs.ToAggregate()
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: %v, want %q", c.kind, spec, err, c.want)
		}
	}
}
