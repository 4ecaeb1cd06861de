package iptables

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/iptables"
	"wayleave.dev/model"
	"wayleave.dev/service"
)

// How many clients session affinity knows is the kernel's to say when it loads xt_recent:
// the host's modprobe.d sets it, as docs/services.md says. It is tried in the VM alone:
// files of this machine are not a test's to write.
func TestRecentClientsAreSetByTheHost(t *testing.T) {
	const parameter = "/sys/module/xt_recent/parameters/ip_list_tot"
	if _, err := os.Stat("/src/tests"); err != nil {
		t.Skip("needs a kernel with xt_recent as a module that nobody has loaded: make test-vm")
	}
	if _, err := os.Stat(parameter); err == nil {
		t.Fatal("xt_recent was loaded already")
	}
	if err := os.MkdirAll("/etc/modprobe.d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/modprobe.d/wayleave.conf", []byte("options xt_recent ip_list_tot=5000\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	ns := testnet.New(t, "node")
	k, err := iptables.NewKernel(ns.FD(), iptables.NFT)
	if err != nil {
		t.Fatal(err)
	}
	m := New(k, &conntrack.Fake{})
	p := service.Plan{Frontends: []service.FrontendPlan{
		{Frontend: service.Frontend{Addr: netip.MustParseAddr("10.96.0.1"),
			Protocol: model.TCP, Port: 80},
			Slots: []netip.AddrPort{netip.MustParseAddrPort("10.244.0.1:80")}, Affinity: time.Hour}}}
	program(t, m, map[model.Name]service.Plan{name(1): p})
	raw, err := os.ReadFile(parameter)
	if err != nil || strings.TrimSpace(string(raw)) != "5000" {
		t.Errorf("the limit is %q, %v", raw, err)
	}
	// Later it is fixed, also for root.
	if err := os.WriteFile(parameter, []byte("6000"), 0); err == nil {
		t.Error("it was changed later")
	}
}
