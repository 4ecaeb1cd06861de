package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"wayleave.dev/dns/schema"
	"wayleave.dev/model"
)

// The list of guests is bounded, is not sent again when it is the same, and leaves out whom the settings cover.
func TestGuestsAreBounded(t *testing.T) {
	f := &Feed{}
	f.Configure(schema.Settings{Clients: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9")}})
	g := &Guests{Feed: f, Log: slog.New(slog.DiscardHandler)}
	pods := map[model.Name][]netip.Addr{}
	for i := range schema.MaxGuests + 10 {
		a := netip.AddrFrom4([4]byte{10, byte(128 + i>>16), byte(i >> 8), byte(i)})
		pods[model.Name{Namespace: "x", Name: fmt.Sprint(i)}] = []netip.Addr{a}
	}
	pods[model.Name{Name: "covered"}] = []netip.Addr{netip.MustParseAddr("10.1.1.1")}
	g.SetRouted([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	if err := g.Sync(t.Context(), pods); err != nil {
		t.Fatal(err)
	}
	var told guestsTold
	now := time.Now()
	list, _ := f.nextGuests(&told, now)
	if list == nil || len(*list) > schema.MaxGuests || len(*list) < schema.MaxGuests-2 {
		t.Fatalf("%v", list == nil)
	}
	c := schema.NewClients(*list)
	if !c.Allowed(netip.MustParseAddr("192.0.2.7")) || c.Allowed(netip.MustParseAddr("10.1.1.1")) ||
		c.Allowed(netip.MustParseAddr("192.0.3.7")) {
		t.Error("the list is not as wanted")
	}
	now = now.Add(time.Hour)
	f.Configure(schema.Settings{Clients: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/9")}})
	if again, _ := f.nextGuests(&told, now); again != nil {
		t.Error("the same list is sent again")
	}
	// A change so soon waits, and comes.
	if err := g.Sync(t.Context(), map[model.Name][]netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	told.again = now.Add(time.Second)
	early, wait := f.nextGuests(&told, now)
	if early != nil || wait != time.Second {
		t.Errorf("the list is sent at once: %v, after %s", early, wait)
	}
	if list, _ := f.nextGuests(&told, now.Add(wait)); list == nil || len(*list) != 1 {
		t.Errorf("the list is %v", list)
	}
}
