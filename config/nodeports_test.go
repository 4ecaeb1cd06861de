package config

import (
	"fmt"
	"strings"
	"testing"
)

// kube-proxy's words of Kubernetes 1.37, in any combination, and CIDRs as Kubernetes reads them.
func TestNodePortAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"[]": "[] false", "[primary]": "[] true", "[localhost]": "[127.0.0.0/8] false",
		"[all]":                "[0.0.0.0/0 ::/0] false",
		"[primary, localhost]": "[127.0.0.0/8] true",
		"[192.0.2.0/24, primary, '2001:db8::/32']": "[192.0.2.0/24 2001:db8::/32] true",
		"[010.0.0.0/8]": "[10.0.0.0/8] false", "[192.0.2.1/24]": "[192.0.2.0/24] false",
	} {
		c, err := Parse([]byte("service: {nodePortAddresses: " + in + "}"))
		if got := fmt.Sprint(c.Service.NodePortAddresses, c.Service.NodePortPrimary); err != nil || got != want {
			t.Errorf("%s became %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"primary", "[Primary]", "[ten]", "[192.0.2.1]", "[7]"} {
		if _, err := Parse([]byte("service: {nodePortAddresses: " + in + "}")); err == nil ||
			!strings.Contains(err.Error(), "a list of CIDRs, primary, localhost and all is allowed") {
			t.Errorf("%s: %v", in, err)
		}
	}
}
