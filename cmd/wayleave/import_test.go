package main

import (
	"bytes"
	"strings"
	"testing"
)

// imports runs an import; it returns what is printed, what is said, and the error.
func imports(in string, args ...string) (out, notes string, err error) {
	c := root()
	var o, n bytes.Buffer
	c.SetArgs(append([]string{"import"}, args...))
	c.SetIn(strings.NewReader(in))
	c.SetOut(&o)
	c.SetErr(&n)
	err = c.Execute()
	return o.String(), n.String(), err
}

func TestImportMetalLB(t *testing.T) {
	const pool = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: lan}\nspec: {addresses: " +
		"[192.0.2.0/24]}\n---\napiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: all}\nspec: " +
		"{interfaces: [eth1]}\n"
	const want = "---\napiVersion: wayleave.dev/v1alpha1\nkind: AddressPool\nmetadata:\n  name: lan\nspec:\n  " +
		"addresses:\n  - 192.0.2.0/24\n  l2:\n    interfaces:\n    - eth1\n"
	out, notes, err := imports(pool, "metallb", "-f", "-")
	if err != nil || out != want || notes != "" {
		t.Errorf("printed\n%s\nand\n%s%v", out, notes, err)
	}
	// What is lost is named, and the exit status says so.
	out, notes, err = imports(pool+"---\napiVersion: metallb.io/v1beta2\nkind: BFDProfile\nmetadata: {name: fast}\n",
		"metallb", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "not carried over: 1") || out != want ||
		!strings.HasPrefix(notes,
			"not carried over: BFDProfile fast: kind: is not carried over: BFD is not supported\n") {
		t.Errorf("printed\n%s\nand\n%s%v", out, notes, err)
	}
}

func TestImportKubeProxy(t *testing.T) {
	const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
	out, notes, err := imports(head+"mode: ipvs\nclusterCIDR: 10.244.0.0/16\n", "kube-proxy", "-f", "-")
	if err != nil || out != "mode: ipvs\n" ||
		!strings.HasPrefix(notes, "note: config.conf: clusterCIDR: found \"10.244.0.0/16\"; ") {
		t.Errorf("printed\n%s\nand\n%s%v", out, notes, err)
	}
	out, notes, err = imports("", "kube-proxy", "--", "--proxy-mode=nftables", "--masquerade-all")
	if err == nil || out != "mode: nftables\n" ||
		!strings.HasPrefix(notes, "not carried over: --masquerade-all: found true; ") {
		t.Errorf("printed\n%s\nand\n%s%v", out, notes, err)
	}
	for _, args := range [][]string{{"kube-proxy"}, {"kube-proxy", "-f", "-"},
		{"kube-proxy", "-f", "/does/not/exist"}} {
		if out, _, err := imports("", args...); err == nil {
			t.Errorf("%v: no error, printed %s", args, out)
		}
	}
}
