package presubmit

import (
	"slices"
	"strings"
	"testing"
)

// process is a process without capabilities that reads hostile bytes, by its packages.
type process struct {
	name string
	// parsers read bytes of strangers. Only parsers themselves import them, and the commands that run the process.
	parsers []string
	by      []string
	// agent are the packages by which the agent feeds the process.
	agent []string
	// talkers are the parsers that talk to the agent. No other parser needs to know the hand-off.
	talkers []string
}

func processes() []process {
	return []process{
		// internal/metricdocs runs when pages are generated.
		{"dns", []string{"dns/wire", "dns/zone", "dns/cache", "dns/forward", "dns/server"},
			[]string{"cmd/wayleave", "internal/metricdocs"},
			[]string{"dns", "dns/schema", "dns/frames"}, []string{"dns/server"}},
		// explain shows what a proxy would do with a request that its user writes, and runs in no agent.
		{"proxy", []string{"proxy", "proxy/h1", "proxy/message", "proxy/process", "proxy/server", "proxy/upstream"},
			[]string{"cmd/wayleave", "explain", "internal/metricdocs"},
			[]string{"proxy/feed", "proxy/schema", "proxy/frames", "ingress"},
			[]string{"proxy/process"}},
		// The feature in the agent knows only the name of the process.
		{"wireguard", []string{"podnetwork/wireguard/process"}, []string{"cmd/wayleave"},
			[]string{"kernel/wireguard", "podnetwork", "podnetwork/wireguard/frames"},
			[]string{"podnetwork/wireguard/process"}},
	}
}

// closure is all of our packages that some packages import, with themselves, each by the one that imports it.
func closure(pkgs []pkg, roots []string) map[string]string {
	imports := map[string][]string{}
	for _, p := range pkgs {
		imports[strings.TrimPrefix(p.ImportPath, module)] = p.Imports
	}
	out := map[string]string{}
	for todo := slices.Clone(roots); len(todo) > 0; todo = todo[1:] {
		for _, i := range imports[todo[0]] {
			i, ours := strings.CutPrefix(i, module)
			if _, seen := out[i]; ours && !seen {
				out[i] = todo[0]
				todo = append(todo, i)
			}
		}
	}
	return out
}

// Bytes of strangers are parsed by processes without capabilities alone: the agent has none of their parsers in
// its packages, and they have nothing by which the agent changes the node.
func TestHostileBytesAreParsedInTheirProcessAlone(t *testing.T) {
	pkgs := packages(t)
	known := map[string]bool{}
	var agent []string
	for _, p := range pkgs {
		self := strings.TrimPrefix(p.ImportPath, module)
		if known[self] = true; below(self, "agent") {
			agent = append(agent, self)
		}
	}
	for _, x := range processes() {
		for _, name := range slices.Concat(x.parsers, x.agent) {
			if !known[name] {
				t.Errorf("%s: there is no package %s", x.name, name)
			}
		}
		for _, p := range pkgs {
			self := strings.TrimPrefix(p.ImportPath, module)
			if slices.Contains(x.parsers, self) || belowAny(self, x.by) {
				continue
			}
			for _, i := range p.Imports {
				if slices.Contains(x.parsers, strings.TrimPrefix(i, module)) {
					t.Errorf("%s imports %s, which is for the process %s alone", self, i, x.name)
				}
			}
		}
		for i, by := range closure(pkgs, slices.Concat(agent, x.agent)) {
			if slices.Contains(x.parsers, i) {
				t.Errorf("the agent has the parser %s by %s", i, by)
			}
		}
		for i, by := range closure(pkgs, x.parsers) {
			if belowAny(i, []string{"kernel", "source", "writeback", "reconcile", "agent"}) ||
				slices.Contains(x.agent, i) && !strings.HasSuffix(i, "/schema") && !strings.HasSuffix(i, "/frames") {
				t.Errorf("the process %s has %s by %s", x.name, i, by)
			}
		}
		isTalker := func(p string) bool { return slices.Contains(x.talkers, p) }
		silent := slices.DeleteFunc(slices.Clone(x.parsers), isTalker)
		for i, by := range closure(pkgs, silent) {
			if belowAny(i, []string{"internal/handoff", "internal/frame"}) {
				t.Errorf("%s talks to the agent; only %v may", by, x.talkers)
			}
		}
	}
}
