package kernel

import (
	"strings"
	"testing"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/kernel/nft"
)

func TestDetectLeavesNothing(t *testing.T) {
	ns := testnet.New(t, "ns")
	ns.Must(func() error {
		f, err := Detect(t.Context())
		if err != nil {
			return err
		}
		if f.Release == "" || !f.Socket || !f.IPv6 || f.Refusal() != nil {
			t.Errorf("%+v; this kernel runs our other tests, so it has all", f)
		}
		if w := f.Words(); w["release"] != f.Release || w["nft-socket"] != "yes" {
			t.Errorf("words are %v", w)
		}
		return nil
	})
	k, err := nft.NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	if st, err := k.Read(t.Context(), probe()); err != nil || st.Exists {
		t.Errorf("the probe is still there: %+v, %v", st, err)
	}
}

// A rule that the kernel cannot take is told from one that it can.
func TestTryFails(t *testing.T) {
	ns := testnet.New(t, "ns")
	k, err := nft.NewKernel(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Try(t.Context(), probe(nft.Goto("nowhere"))); err == nil {
		t.Error("a rule that goes nowhere was accepted")
	}
}

func TestRefusalNamesTheModules(t *testing.T) {
	f := Features{Release: "5.15.0", Missing: []string{"nft_masq", "nft_nat"}}
	if err := f.Refusal(); err == nil || !strings.Contains(err.Error(), "modprobe -a nft_masq nft_nat") ||
		!strings.Contains(err.Error(), "5.15.0") {
		t.Errorf("%v", err)
	}
}
