package presubmit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// strictParsers are folders and files that may read addresses by net/netip or net, and what of.
// Text of API objects and of settings is read by internal/apiaddr.
func strictParsers() map[string]string {
	return map[string]string{
		"internal/apiaddr": "it is the reader", "internal/testnet": "tests",
		"internal/listeners":        "a table of the documentation",
		"model/nameserver.go":       "servers with ports and names, of settings",
		"dns":                       "names of queries, resolv.conf, Corefiles",
		"proxy":                     "requests and sockets",
		"ingress":                   "annotations and hosts of URLs, read as ingress-nginx reads them",
		"kernel":                    "rules of the kernel",
		"podnetwork/cni/request.go": "CNI's own arguments", "service/iptables/mode.go": "rules of the kernel",
		"agent/loadbalancer/links.go":     "addresses of interfaces",
		"statusserver/pace.go":            "sockets",
		"loadbalancer/bgp/speaker":        "what the BGP library says of peers and prefixes",
		"loadbalancer/peers/transport.go": "sockets", "explain/policy.go": "arguments of a command",
		"service/conformance": "tests", "lab": "tests", "bench": "measurements", "hack": "tools",
	}
}

// No other code reads addresses: net/netip refuses what API servers have stored.
func TestAddressesOfObjectsHaveOneReader(t *testing.T) {
	top, allowed := root(t), strictParsers()
	used := map[string]bool{}
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := s.X.(*ast.Ident)
			if !ok || !isAddressParser(x.Name+"."+s.Sel.Name) {
				return true
			}
			for at := range allowed {
				if rel == at || strings.HasPrefix(rel, at+"/") {
					used[at] = true
					return true
				}
			}
			t.Errorf("%s: %s.%s: text of API objects is read by internal/apiaddr", set.Position(s.Pos()),
				x.Name, s.Sel.Name)
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for at := range allowed {
		if !used[at] && strings.HasSuffix(at, ".go") {
			t.Errorf("%s reads no addresses: take it out of the list", at)
		}
	}
}

func isAddressParser(name string) bool {
	switch name {
	case "netip.ParseAddr", "netip.ParsePrefix", "netip.ParseAddrPort", "net.ParseIP", "net.ParseCIDR",
		"netutils.ParseIPSloppy", "netutils.ParseCIDRSloppy":
		return true
	}
	return false
}

// The node's name is that of its Node object, which the DaemonSet hands over: the host may have
// another one (the kubelet's --hostname-override).
func TestNoCodeAsksForTheHostName(t *testing.T) {
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(top, path)
		if d != nil && d.IsDir() && (rel == "lab" || rel == "bench" || rel == "hack") {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && (x.Name == "os" && s.Sel.Name == "Hostname" || x.Name == "unix" &&
					s.Sel.Name == "Uname") && !strings.HasPrefix(rel, "kernel/") {
					t.Errorf("%s asks for the host name", rel)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
