package config

import (
	"strings"
	"testing"
)

// URLs of the settings may have variables, and nothing that the proxy cannot read.
func TestGlobalAuth(t *testing.T) {
	for _, c := range []struct {
		url  string
		good bool
	}{
		{"https://auth.example/check", true}, {"http://auth.shop.svc:8080/$host?u=$escaped_request_uri", true},
		{"$scheme://auth.example/", false},
		{"auth.example", false}, {"ftp://auth.example/", false}, {"https://user@auth.example/", false},
		{"https://auth.example/$nothing", false}, {"https:///x", false},
	} {
		if err := webURL(c.url); (err == nil) != c.good {
			t.Errorf("%q: %v", c.url, err)
		}
	}
	for name, good := range map[string]bool{"X-User": true, "": false, "X User": false, "X-A:": false,
		strings.Repeat("a", 10): true} {
		if _, err := fieldName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}
