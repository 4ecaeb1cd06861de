package nftables

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
	"wayleave.dev/source/manifest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden is YAML of a file of testdata, and what becomes of it at node1: entries. All pods
// in it are at node1, and 10.96.0.10 and fd00:96::a are kube-dns.
func golden(t *testing.T, file string) (yaml []byte, entries map[entryKey]entry) {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	watch, err := store.Watch(networkpolicy.PlannerKinds)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	problems, err := manifest.Read(store, "in.yaml", bytes.NewReader(ar.Files[0].Data))
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	l := networkpolicy.NodeInputs{Node: "node1", Ingress: true, DNS: []netip.Addr{dnsVIP(false), dnsVIP(true)}}
	snap, changes, _ := watch.Poll()
	planner := networkpolicy.NewPlanner(l)
	entries = map[entryKey]entry{}
	for _, k := range planner.Keys(snap, changes) {
		if e, ok, _ := planner.Plan(snap, k); ok {
			entries[k] = e
		}
	}
	return ar.Files[0].Data, entries
}

// words prints entries for people.
func words(entries map[entryKey]entry) string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(entries), compareKeys) {
		e := entries[k]
		switch k.Kind {
		case networkpolicy.PodEntry:
			fmt.Fprintf(&b, "%s of %s: profile %s, policies %v\n", k.Direction, k.Addr, e.Profile, e.Policies)
		case networkpolicy.ProxyEntry:
			fmt.Fprintf(&b, "%s is the ingress proxy's here\n", k.Addr)
		case networkpolicy.PeerEntry:
			fmt.Fprintf(&b, "%s profile %s: %s may %v\n", k.Direction, k.Profile, k.Addr, e.Ports)
		case networkpolicy.BlocksEntry:
			for _, x := range e.Blocks {
				fmt.Fprintf(&b, "%s profile %s: %s-%s may %v\n", k.Direction, k.Profile, x.Range.From,
					x.Range.To, x.Ports)
			}
		}
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			yaml, entries := golden(t, file)
			text := Text(entries)
			got := txtar.Format(&txtar.Archive{Files: []txtar.File{{Name: "in.yaml", Data: yaml},
				{Name: "entries", Data: []byte(words(entries))}, {Name: "nft", Data: []byte(text)}}})
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is no longer so (-update writes it):\n%s", file, got)
			}
			sameByNetlink(t, entries, text)
		})
	}
}

// sameByNetlink says that what we send is what nft makes of the text, and that it lists
// all of it.
func sameByNetlink(t *testing.T, entries map[entryKey]entry, text string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Log("nft was not asked: this is not root")
		return
	}
	testnet.Need(t, "nft")
	file := filepath.Join(t.TempDir(), "x.nft")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a, b := testnet.New(t, "netlink"), testnet.New(t, "text")
	b.Run("nft", "-f", file)
	conn, err := nft.NewKernel(a.FD())
	if err != nil {
		t.Fatal(err)
	}
	m := New(conn, conntrack.NewTracker(a.FD()))
	if err := m.Sync(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
	list := func(ns *testnet.NS) string {
		// Sets are listed in the order in which they were made.
		blocks := strings.Split(ns.Run("nft", "list", "ruleset"), "\n\n")
		for i := range blocks {
			blocks[i] = strings.TrimSpace(strings.NewReplacer("table ip wayleave-policy {\n", "",
				"table ip6 wayleave-policy {\n", "").Replace(blocks[i]))
		}
		slices.Sort(blocks)
		return strings.Join(blocks, "\n")
	}
	if got, want := list(a), list(b); got != want {
		t.Errorf("by netlink:\n%s\nby text:\n%s", got, want)
	}
}
