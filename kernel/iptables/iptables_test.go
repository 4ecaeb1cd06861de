package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
)

// each runs a test in a namespace of its own for each flavour.
func each(t *testing.T, test func(t *testing.T, ns *testnet.NS, k *Kernel)) {
	t.Parallel()
	for _, flavour := range []Flavour{NFT, Legacy} {
		t.Run(string(flavour), func(t *testing.T) {
			t.Parallel()
			testnet.Need(t, "iptables-nft", "iptables-legacy")
			ns := testnet.New(t, "node")
			test(t, ns, kernelOf(t, ns, flavour))
		})
	}
}

func kernelOf(t *testing.T, ns *testnet.NS, flavour Flavour) *Kernel {
	t.Helper()
	k, err := NewKernel(ns.FD(), flavour)
	if err != nil {
		t.Fatal(err)
	}
	k.LockFile = filepath.Join(t.TempDir(), "lock")
	return k
}

// foreign runs the program of another that uses the flavour.
func foreign(t *testing.T, ns *testnet.NS, flavour Flavour, args string) {
	t.Helper()
	lock := "XTABLES_LOCKFILE=" + filepath.Join(t.TempDir(), "lock")
	ns.Run("env", append([]string{lock, "iptables-" + string(flavour)}, strings.Fields(args)...)...)
}

// What is restored is read as it was written, in both families, and the other chains of
// the table are as before.
func TestRestoreAndRead(t *testing.T) {
	each(t, func(t *testing.T, ns *testnet.NS, k *Kernel) {
		foreign(t, ns, k.flavour, "-t nat -N OTHERS")
		foreign(t, ns, k.flavour, "-t nat -A OTHERS -j RETURN")
		c := Change{Table: "nat", Set: map[string][]string{
			"MINE": {`-p tcp -m comment --comment "default/a:b" -m tcp --dport 80 -j RETURN`}, "EMPTY": nil},
			Insert: []Rule{{"OUTPUT", "-j MINE"}}}
		for _, f := range Families() {
			if err := k.Restore(t.Context(), f, c.Text()); err != nil {
				t.Fatal(err)
			}
			got, err := k.Read(t.Context(), f, "nat")
			if err != nil {
				t.Fatal(err)
			}
			want := Table{"PREROUTING": nil, "INPUT": nil, "OUTPUT": {"-j MINE"}, "POSTROUTING": nil,
				"MINE": c.Set["MINE"], "EMPTY": nil}
			if f == IPv4 {
				want["OTHERS"] = []string{"-j RETURN"}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s has\n%q\nwant\n%q", f, got, want)
			}
		}
		back := Change{Table: "nat", Drop: []string{"MINE", "EMPTY"}, Delete: c.Insert}
		if err := k.Restore(t.Context(), IPv4, back.Text()); err != nil {
			t.Fatal(err)
		}
		got, err := k.Read(t.Context(), IPv4, "nat")
		if want := (Table{"PREROUTING": nil, "INPUT": nil, "OUTPUT": nil, "POSTROUTING": nil,
			"OTHERS": {"-j RETURN"}}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("after all %q, want %q: %v", got, want, err)
		}
	})
}

// A table that is refused is as before, and the error says what the program said.
func TestRefusedTextChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, _ *testnet.NS, k *Kernel) {
		good := Change{Table: "nat", Set: map[string][]string{"MINE": {"-p tcp -j RETURN"}}}
		if err := k.Restore(t.Context(), IPv4, good.Text()); err != nil {
			t.Fatal(err)
		}
		bad := Change{Table: "nat", Set: map[string][]string{"MINE": {"-p udp -j RETURN"}, "NEW": {"-j NOWHERE"}}}
		err := k.Restore(t.Context(), IPv4, bad.Text())
		if err == nil || !strings.HasPrefix(err.Error(), "iptables-"+string(k.flavour)+"-restore: ") ||
			!strings.Contains(err.Error(), "line ") && !strings.Contains(err.Error(), "NOWHERE") {
			t.Errorf("the error is %v", err)
		}
		got, err := k.Read(t.Context(), IPv4, "nat")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := got["NEW"]; ok || strings.Join(got["MINE"], ";") != "-p tcp -j RETURN" {
			t.Errorf("the table is %q", got)
		}
	})
}

// A memory that is damaged, or that the disk does not take, is told of and stops no rule; the kernel's chains
// that are not known to be ours stay.
func TestADamagedMemoryStopsNoRule(t *testing.T) {
	testnet.Need(t, "iptables-nft")
	ns := testnet.New(t, "node")
	mine := Change{Table: "nat", Set: map[string][]string{"MINE": {"-p tcp -j RETURN"}}}
	for _, text := range []string{"", "{", `{"iptables nat":["PRE`, "null", "[]", "\x00\x00"} {
		k := kernelOf(t, ns, NFT)
		k.Memory = filepath.Join(t.TempDir(), "memory")
		if err := os.WriteFile(k.Memory, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var told error
		k.Tell = func(_ string, err error) { told = errors.Join(told, err) }
		for range 2 {
			if err := k.Restore(t.Context(), IPv4, mine.Text()); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
		if told == nil || !strings.Contains(told.Error(), k.Memory) {
			t.Errorf("%q: told %v", text, told)
		}
		if err := k.Tidy(t.Context(), IPv4, "nat"); err != nil {
			t.Errorf("%q: tidy: %v", text, err)
		}
	}
	k := kernelOf(t, ns, NFT)
	k.Memory = "/proc/no-such-folder/memory"
	if err := k.Restore(t.Context(), IPv4, mine.Text()); err != nil {
		t.Errorf("without a disk: %v", err)
	}
}

// Looking makes no table: an empty legacy one would have all packets pass it.
func TestReadMakesNoTable(t *testing.T) {
	each(t, func(t *testing.T, ns *testnet.NS, k *Kernel) {
		for _, f := range Families() {
			got, err := k.Read(t.Context(), f, "nat")
			if err != nil {
				t.Error(err)
			}
			for chain, rules := range got { // iptables-nft-save names those of the kernel
				if len(rules) > 0 {
					t.Errorf("%s: %s has %q", f, chain, rules)
				}
			}
		}
		if _, err := Detect(t.Context(), ns.FD()); err != nil {
			t.Error(err)
		}
		legacy := kernelOf(t, ns, Legacy)
		for _, f := range Families() {
			if has, err := legacy.Has(t.Context(), f, "nat"); err != nil || has {
				t.Errorf("%s has a legacy table nat now: %v", f, err)
			}
		}
		if out := ns.Run("nft", "list", "ruleset"); strings.TrimSpace(out) != "" {
			t.Errorf("nf_tables has now\n%s", out)
		}
	})
}

func TestDetect(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "iptables-nft", "iptables-legacy")
	for _, c := range []struct {
		name        string
		nft, legacy []string // what others did
		want        Found
	}{
		{"nothing", nil, nil, Found{NFT, "no rules were there", false}},
		{"nft", []string{"-A INPUT -p tcp -j ACCEPT"}, nil, Found{NFT, "1 rules, and 0 of iptables-legacy", false}},
		{"legacy", nil, []string{"-A INPUT -p tcp -j ACCEPT"}, Found{Legacy, "1 rules, and 0 of iptables-nft", false}},
		{"mixed, more of legacy", []string{"-A INPUT -p tcp -j ACCEPT"}, []string{"-A INPUT -p tcp -j ACCEPT",
			"-t nat -A OUTPUT -p udp -j ACCEPT"},
			Found{Legacy, "2 rules, and 1 of iptables-nft", true}},
		{"as many", []string{"-A INPUT -p tcp -j ACCEPT"}, []string{"-A INPUT -p tcp -j ACCEPT"},
			Found{NFT, "1 rules, and 1 of iptables-legacy", true}},
		// The kubelet says it, whatever rules there are.
		{"the kubelet's hint", []string{"-A INPUT -p tcp -j ACCEPT"}, []string{"-t mangle -N KUBE-IPTABLES-HINT"},
			Found{Legacy, "chain KUBE-IPTABLES-HINT", false}},
		{"the kubelet's canary", []string{"-t mangle -N KUBE-KUBELET-CANARY"}, []string{"-A INPUT -p tcp -j ACCEPT",
			"-A INPUT -p udp -j ACCEPT"},
			Found{NFT, "chain KUBE-KUBELET-CANARY", false}},
		// What a former service proxy left says nothing of what the host uses.
		{"a service proxy's rules", nil, []string{"-t nat -N KUBE-SERVICES", "-t nat -A KUBE-SERVICES -p tcp -j RETURN",
			"-t nat -A OUTPUT -j KUBE-SERVICES"},
			Found{NFT, "no rules were there", false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ns := testnet.New(t, "node")
			for _, r := range c.nft {
				foreign(t, ns, NFT, r)
			}
			for _, r := range c.legacy {
				foreign(t, ns, Legacy, r)
			}
			got, err := Detect(t.Context(), ns.FD())
			if err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

// Programs that are not there are named before anything is done.
func TestProgramsAreMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if Installed() {
		t.Error("no program is here")
	}
	if _, err := NewKernel(0, NFT); err == nil || !strings.Contains(err.Error(), "iptables-nft-save") ||
		!strings.Contains(err.Error(), exec.ErrNotFound.Error()) {
		t.Errorf("the error is %v", err)
	}
}

// Others' changes are told, our own not.
func TestWatchNFT(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "iptables-nft", "iptables-legacy")
	ns := testnet.New(t, "node")
	k := kernelOf(t, ns, NFT)
	var mark atomic.Value // the last chain MARK… that was made: what happened before was looked at by then
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told, err := k.Watch(ctx, func(table, chain string) bool {
		if strings.HasPrefix(chain, "MARK") {
			mark.Store(chain)
			return false
		}
		return table == "nat" && chain != "OTHERS"
	})
	if err != nil {
		t.Fatal(err)
	}
	marks := 0
	silent := func(what string) {
		t.Helper()
		marks++
		name := fmt.Sprint("MARK", marks)
		foreign(t, ns, NFT, "-t nat -N "+name)
		testnet.Eventually(t, 10*time.Second, func() error {
			if got := mark.Load(); got != name {
				return fmt.Errorf("the last mark is %v, not %s", got, name)
			}
			return nil
		})
		select {
		case <-told:
			t.Errorf("%s was told as a change of others", what)
		default:
		}
	}
	loud := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Errorf("%s was not told", what)
		}
	}
	for i := range 3 {
		c := Change{Table: "nat", Set: map[string][]string{
			"MINE": {fmt.Sprintf("-p tcp -m tcp --dport %d -j RETURN", i+1)}}}
		if err := k.Restore(t.Context(), IPv4, c.Text()); err != nil {
			t.Fatal(err)
		}
	}
	silent("our text")
	foreign(t, ns, NFT, "-t nat -N OTHERS")
	foreign(t, ns, NFT, "-t filter -N MINE")
	silent("what concerns nobody here")
	foreign(t, ns, NFT, "-t nat -F MINE")
	loud("a flushed chain")
	ns.Run("nft", "flush", "ruleset")
	loud("a flushed ruleset")
}

// Legacy tables tell nothing, so they are looked at: a change of others is told once,
// also when we changed the table before that look, and our own never.
func TestWatchLegacy(t *testing.T) {
	t.Parallel()
	testnet.Need(t, "iptables-nft", "iptables-legacy")
	ns := testnet.New(t, "node")
	k := kernelOf(t, ns, Legacy)
	mine := func(rules ...string) {
		t.Helper()
		if err := k.Restore(t.Context(), IPv4,
			Change{Table: "nat", Set: map[string][]string{"MINE": rules}}.Text()); err != nil {
			t.Fatal(err)
		}
	}
	is := func(what string, want bool) {
		t.Helper()
		if got := k.changed(); got != want {
			t.Errorf("%s: told %t, want %t", what, got, want)
		}
	}
	mine("-p tcp -j RETURN")
	is("our text", false)
	mine("-p tcp -j RETURN", "-p udp -j RETURN")
	is("our second text", false)
	foreign(t, ns, Legacy, "-t nat -F MINE")
	is("a flushed chain", true)
	is("the same", false)
	foreign(t, ns, Legacy, "-t nat -F")
	foreign(t, ns, Legacy, "-t nat -X MINE")
	mine("-p udp -j RETURN")
	is("a chain removed before our text", true)
	is("the same", false)

	told, err := k.Watch(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign(t, ns, Legacy, "-t nat -F MINE")
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Error("the watch does not look")
	}
}
