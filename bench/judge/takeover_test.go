package judge

import (
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/bench/internal/kubeproxy"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/service/conformance"
)

// replaceable is a mode that another one replaces.
type replaceable struct{ conformance.Mode }

// TestTakeover: after a kube-proxy has stopped, a mode of Wayleave takes over its state without loss, and removes it
// once its own is in place. WAYLEAVE_TAKEOVER is a list of "mode of kube-proxy/mode of Wayleave", such as
// "iptables/nftables,nftables/iptables-nft". Modes with ipvs need a kernel that has it, and WAYLEAVE_KUBE, the program:
//
//	TEST_VM_FILES=…/kube TEST_VM_ENV="WAYLEAVE_KUBE=/files/kube WAYLEAVE_TAKEOVER=ipvs/nftables,ipvs/ipvs" \
//		hack/test-vm ./bench/judge TestTakeover
func TestTakeover(t *testing.T) {
	rows := strings.FieldsFunc(os.Getenv("WAYLEAVE_TAKEOVER"), func(r rune) bool { return r == ',' })
	if len(rows) == 0 {
		t.Skip(`WAYLEAVE_TAKEOVER is not set; for example "iptables/nftables"`)
	}
	bin := os.Getenv("WAYLEAVE_KUBE") // prebuilt, for a machine without a compiler
	if bin == "" {
		bin, _ = kubeproxy.Program(t)
	}
	for _, row := range rows {
		theirs, ours, ok := strings.Cut(row, "/")
		if !ok {
			t.Fatalf("%q: allowed: mode/mode", row)
		}
		t.Run(theirs+" by "+ours, func(t *testing.T) { takeover(t, bin, theirs, ours) })
	}
}

func takeover(t *testing.T, bin, theirs, ours string) {
	var proxies []*proxy
	var at []*replaceable
	w := conformance.NewWorld(t, func(n *conformance.Node) conformance.Mode {
		p := newProxy(t, n, theirs, bin)
		proxies = append(proxies, p)
		at = append(at, &replaceable{p})
		return at[len(at)-1]
	})
	w.Meter()
	w.Set(conformance.Web(), w.Pods[1], w.Pods[2])
	pace := 1.0
	if theirs == "ipvs" || ours == "ipvs" {
		pace = 0.2 // in the VM
	}
	live := conformance.Start(t, w, pace)
	live.Check("kube-proxy runs")
	for _, p := range proxies {
		p.process.Stop()
	}
	live.Check("kube-proxy has ended")
	var all []*conformance.Changing
	for i, n := range w.Nodes {
		c := conformance.NewChanging(t, n, 2*time.Minute)
		c.Become(ours)
		at[i].Mode = c
		all = append(all, c)
	}
	w.Program()
	live.Check("both are there")
	left := make(chan error, len(all))
	for _, c := range all {
		go func() { left <- c.Leave() }()
	}
	leaving := theirs == "ipvs" && ours != "ipvs"
	if leaving {
		live.Check("while the virtual servers are left")
		live.Close()
		live.Stop()
	}
	for range all {
		if err := <-left; err != nil {
			t.Error(err)
		}
	}
	if !leaving {
		live.Check("after")
		live.Stop()
	}
	live.Ask()
	for i, n := range w.Nodes {
		if r := all[i].Remains(); len(r) > 0 {
			t.Errorf("%s: left: %s", n.Name, strings.Join(r, ", "))
		}
		for _, l := range traces(n.NS, ours) {
			t.Errorf("%s: kube-proxy left: %s", n.Name, l)
		}
	}
}

// traces returns the lines about kube-proxy in the node's state. Chains of Wayleave's mode iptables have its names, and
// KUBE-FIREWALL is also the kubelet's, which runs on every node and creates it.
func traces(ns *testnet.NS, ours string) (out []string) {
	commands := []string{"nft list tables", "iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save",
		"ip6tables-legacy-save", "ip link show type dummy", "ipset list -n"}
	for _, c := range commands {
		words := strings.Fields(c)
		text, err := ns.Try(words[0], words[1:]...)
		if err != nil {
			continue // the program or the kernel module is missing
		}
		for line := range strings.Lines(text) {
			if strings.Contains(line, "KUBE-FIREWALL") {
				continue
			}
			mine := strings.HasPrefix(ours, "iptables") && strings.Contains(c, strings.TrimPrefix(ours, "iptables")) &&
				!strings.Contains(line, "CANARY") && !strings.Contains(line, "match-set")
			if strings.Contains(line, "kube-") || strings.Contains(line, "KUBE-") && !mine {
				out = append(out, c+": "+strings.TrimSpace(line))
			}
		}
	}
	return out
}
