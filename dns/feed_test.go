package dns

import (
	"net/netip"
	"slices"
	"testing"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// A captured dns process can say of upstream servers only what the agent knows words for, of servers that the
// settings name.
func TestNewsAreChecked(t *testing.T) {
	f := &Feed{}
	f.Configure(schema.Settings{
		Forwarding: schema.Forwarding{Upstreams: []model.Nameserver{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}}})
	got := f.known(map[string][]string{"192.0.2.1:53": {"letters", "letters", "\x1b[31m"}, "evil": {"tcp"}})
	if len(got) != 1 || !slices.Equal(got["192.0.2.1:53"], []string{"letters"}) {
		t.Errorf("got %v", got)
	}
}
