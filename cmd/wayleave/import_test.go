package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestImportMetalLB(t *testing.T) {
	c := root()
	var out, notes bytes.Buffer
	c.SetArgs([]string{"import", "metallb", "-f", "-"})
	c.SetIn(strings.NewReader("apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: lan}\nspec: {addresses: [192.0.2.0/24]}\n---\napiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: all}\n---\napiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: tor}\n"))
	c.SetOut(&out)
	c.SetErr(&notes)
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	want := "---\napiVersion: wayleave.dev/v1alpha1\nkind: AddressPool\nmetadata:\n  name: lan\nspec:\n  addresses:\n  - 192.0.2.0/24\n  l2: {}\n"
	if out.String() != want || notes.String() != "note: BGPPeer tor: kind: is not carried over: Wayleave does not announce by BGP\n" {
		t.Errorf("printed\n%s\nand\n%s", &out, &notes)
	}
}
