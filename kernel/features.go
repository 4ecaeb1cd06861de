// Package kernel detects what the kernel of this machine can do. Only the packages below it change kernel state.
// Renderers get the facts as a value, so that rendering is a pure function.
package kernel

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"wayleave.dev/kernel/nft"
)

// Features are the facts that Wayleave depends on.
type Features struct {
	// Release is `uname -r`.
	Release string
	// IPv6 is false when the kernel was booted without it.
	IPv6 bool
	// Socket is nftables' `socket` expression: without it DNS cannot tell whether
	// its server is alive, and keeps its packets tracked.
	Socket bool
	// Missing are expressions of nftables that the service proxy needs and this kernel lacks, by the name of the
	// module.
	Missing []string
}

// Detect finds the facts of the current network namespace. It fails when there is no nf_tables, without which nothing
// works. What it tries in the kernel is undone in the same transaction.
func Detect(ctx context.Context) (Features, error) {
	f := Features{}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return f, fmt.Errorf("kernel: uname: %w", err)
	}
	f.Release = unix.ByteSliceToString(u.Release[:])
	k, err := nft.NewKernel(0)
	if err != nil {
		return f, fmt.Errorf("kernel %s: %w", f.Release, err)
	}
	_, err = os.Stat("/proc/net/if_inet6")
	f.IPv6 = err == nil
	f.Socket = k.Try(ctx, probe(nft.SocketOpen{})) == nil
	for module, rule := range needed() {
		if err := k.Try(ctx, probe(rule...)); err != nil {
			f.Missing = append(f.Missing, module)
		}
	}
	slices.Sort(f.Missing)
	return f, nil
}

// Refusal returns an error that names what the service proxy lacks, or nil.
func (f Features) Refusal() error {
	if len(f.Missing) == 0 {
		return nil
	}
	return fmt.Errorf("kernel %s lacks what mode nftables needs; try: modprobe -a %s", f.Release,
		strings.Join(f.Missing, " "))
}

// Words returns the facts as text, by name.
func (f Features) Words() map[string]string {
	yes := map[bool]string{true: "yes", false: "no"}
	out := map[string]string{"release": f.Release, "nftables": "yes", "ipv6": yes[f.IPv6], "nft-socket": yes[f.Socket]}
	if len(f.Missing) > 0 {
		out["missing"] = strings.Join(f.Missing, " ")
	}
	return out
}

// needed are rules that hold the expressions of the service proxy, by the module
// that has them.
func needed() map[string]nft.Rule {
	return map[string]nft.Rule{
		"nft_ct":     {nft.New, nft.Accept()},
		"nft_masq":   {nft.Masquerade()},
		"nft_nat":    {nft.DNATBy{Fields: []nft.Field{nft.L4Proto, nft.Dport, nft.Random{N: 2}}, Map: "map"}},
		"nft_numgen": {nft.GotoBy{Fields: []nft.Field{nft.L4Proto, nft.Dport, nft.Random{N: 2}}, Map: "verdicts"}},
		"nft_reject": {nft.Reject()},
	}
}

// probe is a table with one rule in a chain that no packet enters.
func probe(rule ...nft.Statement) nft.Table {
	key := []nft.Type{nft.Proto, nft.Port, nft.Index}
	return nft.Table{Family: nft.IPv4, Name: "wayleave-probe",
		Sets: []nft.Set{
			{Name: "map", Key: key, Data: []nft.Type{nft.Addr, nft.Port}},
			{Name: "verdicts", Key: key, Data: []nft.Type{nft.Verdict}},
		},
		Chains: []nft.Chain{{Name: "probe", Rules: []nft.Rule{rule}}}}
}
