package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wayleave.dev/model"
)

func TestOwnAddressesAreNotAsked(t *testing.T) {
	list, err := Foreign([]model.Nameserver{{Addr: netip.MustParseAddrPort("10.96.0.10:53")},
		{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}, []netip.Addr{netip.MustParseAddr("10.96.0.10")})
	if len(list) != 1 || err == nil || !strings.Contains(err.Error(), "10.96.0.10 is the cluster DNS itself") {
		t.Errorf("%v, %v", list, err)
	}
	if !slices.Equal(list, []model.Nameserver{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}) {
		t.Errorf("left are %v", list)
	}
}

func TestUpstreamsOfResolvConf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	text := "search x\nnameserver 192.0.2.1\nnameserver 10.96.0.10\nnameserver bad\n# nameserver " +
		"192.0.2.9\nnameserver 2001:db8::1\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Upstreams(file, []netip.Addr{netip.MustParseAddr("10.96.0.10")})
	if fmt.Sprint(got) != "[192.0.2.1:53 [2001:db8::1]:53]" {
		t.Errorf("upstreams are %v", got)
	}
	if err == nil || !strings.Contains(err.Error(), "10.96.0.10 is the cluster DNS itself") ||
		!strings.Contains(err.Error(), `"bad"`) {
		t.Errorf("error is %v", err)
	}
}
