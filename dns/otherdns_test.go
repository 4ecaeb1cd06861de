package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"wayleave.dev/dns/schema"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

// order records what is done in which order.
type order struct {
	link.Fake
	done []string
}

func (o *order) SetLocal(_ context.Context, a []netip.Addr) error {
	o.done = append(o.done, fmt.Sprintf("local %v", a))
	return nil
}

type orderedBypass struct {
	Bypass
	*order
}

func (b orderedBypass) Set(_ context.Context, a []netip.Addr) error {
	b.done = append(b.done, fmt.Sprintf("rules %v", a))
	return nil
}

// While kube-dns is another server's, its address is left to that one. Rules go before the address does: a query
// between
// the two would be for an address that is nowhere.
func TestTheAddressIsLeftToAnotherServer(t *testing.T) {
	vip, own := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("192.0.2.1")
	key := model.Name{Namespace: "kube-system", Name: "kube-dns"}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	o := &order{}
	p := &Placement{Node: "node1", Service: key, Extra: []netip.Addr{netip.MustParseAddr("169.254.20.10")},
		Feed: &Feed{Log: slog.New(slog.DiscardHandler)}, Net: o, Bypass: orderedBypass{order: o},
		Forwarding: func([]netip.Addr) schema.Forwarding { return schema.Forwarding{} },
		Tell:       func(string, error) {}, Log: slog.New(slog.DiscardHandler)}
	place := func(other bool) Place {
		t.Helper()
		err := store.Write(func(w *model.Writer) {
			w.PutNode(&model.Node{Name: "node1", InternalIPs: []netip.Addr{own}})
			w.PutService(&model.Service{Name: key, ClusterIPs: []netip.Addr{vip}, OtherDNS: other})
		})
		if err != nil {
			t.Fatal(err)
		}
		out, _, _ := p.Plan(store.Snapshot(), key)
		if err := p.Sync(t.Context(), map[model.Name]Place{key: out}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := place(false); len(got.VIPs) != 2 {
		t.Errorf("Wayleave's own Service: %v", got)
	}
	if got := place(true); len(got.VIPs) > 0 || len(got.Nodes) != 1 {
		t.Errorf("another server's: %v", got)
	}
	want := []string{"local [10.96.0.10 169.254.20.10]", "rules [10.96.0.10 169.254.20.10]", "rules []", "local []"}
	if !slices.Equal(o.done, want) {
		t.Errorf("done %q, want %q", o.done, want)
	}
}
