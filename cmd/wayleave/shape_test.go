package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"wayleave.dev/cmd/wayleave/commands"
	"wayleave.dev/deploy"
	"wayleave.dev/internal/cli"
)

// run calls the program as a shell does.
func run(t *testing.T, stdin string, args ...string) (out, errs string, status int) {
	t.Helper()
	var o, e bytes.Buffer
	c := root()
	c.SetIn(strings.NewReader(stdin))
	c.SetOut(&o)
	c.SetErr(&e)
	c.SetArgs(args)
	status = cli.Report(c.ExecuteContext(t.Context()), "wayleave", &e)
	return o.String(), e.String(), status
}

// leaves are all commands without commands below.
func leaves(c *cobra.Command) (out []*cobra.Command) {
	for _, sub := range c.Commands() {
		out = append(out, leaves(sub)...)
	}
	if !c.HasSubCommands() {
		out = append(out, c)
	}
	return out
}

func ofCobra(c *cobra.Command) bool {
	words := strings.Fields(c.CommandPath())
	return len(words) > 1 && (words[1] == "completion" || words[1] == "help")
}

// Every command has the shape that docs/cli.md promises.
func TestAllCommandsHaveOneShape(t *testing.T) {
	shown := 0
	for _, c := range leaves(root()) {
		path := c.CommandPath()
		flag := c.Flags().Lookup
		if c.Short == "" || c.Args == nil {
			t.Errorf("%s has no short text, or takes any argument", path)
		}
		if f := flag("filename"); f != nil && (f.Shorthand != "f" || !strings.Contains(f.Usage, "- for stdin")) {
			t.Errorf("%s: -f reads no stdin, or does not say so", path)
		}
		if cluster := []bool{flag("kubeconfig") != nil, flag("context") != nil, flag("namespace") != nil}; cluster[0] !=
			cluster[1] || cluster[1] != cluster[2] {
			t.Errorf("%s: some flags of --kubeconfig, --context and -n, not all", path)
		} else if f := flag("namespace"); f != nil && f.Shorthand != "n" {
			t.Errorf("%s: --namespace is not -n", path)
		}
		if c.Hidden || ofCobra(c) {
			continue
		}
		shown++
		if f := flag("output"); f == nil || f.Shorthand != "o" || f.DefValue != "text" {
			t.Errorf("%s has no -o text|json|yaml", path)
		}
		if f := flag("json"); f != nil && !f.Hidden {
			t.Errorf("%s: --json is shown beside -o", path)
		}
	}
	if shown < 9 {
		t.Fatalf("only %d commands were found", shown)
	}
}

// Commands that talk to a cluster take kubectl's flags.
func TestCommandsOfAClusterChooseIt(t *testing.T) {
	for _, words := range clusterCommands() {
		c, _, err := root().Find(strings.Fields(words))
		if err != nil || c.Flags().Lookup("kubeconfig") == nil {
			t.Errorf("%s has no --kubeconfig: %v", words, err)
		}
		// The file is what is read: nothing falls back to another cluster.
		args := append(strings.Fields(words), "--kubeconfig", filepath.Join(t.TempDir(), "none"))
		if words == "explain policy" {
			args = append(args, "pod/a/b", "pod/a/c:80")
		}
		_, errs, status := run(t, "", args...)
		if status != cli.Unknown || !strings.Contains(errs, "none") || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: status %d, %q", words, status, errs)
		}
	}
}

func clusterCommands() []string {
	return []string{"explain policy", "ingress check", "status", "check", "check --pre", "support-bundle", "install",
		"upgrade", "rollback", "test connectivity", "uninstall --cluster"}
}

func TestHelpHidesInternalCommands(t *testing.T) {
	out, _, status := run(t, "", "--help")
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	_, list, _ := strings.Cut(out, "Available Commands:")
	list, _, _ = strings.Cut(list, "Flags:")
	for _, internal := range []string{"agent", "writer", "discover", "proxy", "l2", "bgp", "status-server", "listeners",
		"health"} {
		if strings.Contains(list, "\n  "+internal+" ") {
			t.Errorf("help shows %s", internal)
		}
		if c, _, err := root().Find([]string{internal}); err != nil || c.Name() != internal {
			t.Errorf("%s cannot be called: %v", internal, err)
		}
	}
	for _, shown := range []string{"status", "explain", "ingress", "import", "dns", "render", "completion"} {
		if !strings.Contains(list, "\n  "+shown+" ") {
			t.Errorf("help hides %s", shown)
		}
	}
}

// Each group refuses a command that it does not have, with one line on stderr.
func TestUnknownCommandsFail(t *testing.T) {
	var groups []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.HasSubCommands() {
			groups = append(groups, c)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root())
	if len(groups) < 6 {
		t.Fatalf("only %d groups", len(groups))
	}
	for _, g := range groups {
		args := append(strings.Fields(g.CommandPath())[1:], "no-such-command")
		out, errs, status := run(t, "", args...)
		if status != cli.Unknown || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "unknown") {
			t.Errorf("%v: status %d, printed %q and %q", args, status, out, errs)
		}
	}
	for args, want := range map[string]string{
		"statsu":            "did you mean status?",
		"explain polcy":     "did you mean policy?",
		"help explain poli": "did you mean policy?",
		"help statsu":       "did you mean status?",
	} {
		if _, errs, status := run(t, "", strings.Fields(args)...); status != 2 || !strings.Contains(errs, want) {
			t.Errorf("%s: status %d, %q; want %q", args, status, errs, want)
		}
	}
}

func TestAWrongCommandLineEndsWithTwo(t *testing.T) {
	for _, args := range []string{"status -o xml", "status --no-such-flag", "status more", "render", "import metallb",
		"import corefile", "import corefile a b", "import kube-proxy", "explain policy", "dns query",
		"dns query --as cat/a/b x", "dns log", "dns log --pod a", "ingress check --requests - -n x",
		"completion klingon", "health", "health cat", "version more"} {
		out, errs, status := run(t, "", strings.Fields(args)...)
		if status != cli.Unknown || out != "" || strings.Count(errs, "\n") != 1 ||
			!strings.HasPrefix(errs, "wayleave: ") {
			t.Errorf("%s: status %d, printed %q and %q", args, status, out, errs)
		}
	}
}

// As a plugin the program says its name as it is called.
func TestThePluginOfKubectl(t *testing.T) {
	for _, as := range []string{"kubectl-wayleave", "/usr/bin/kubectl-wayleave", "kubectl-wayleave.exe"} {
		c := commands.Root(deploy.Dev(), nil, "")
		cli.Shape(c, as)
		var out bytes.Buffer
		c.SetOut(&out)
		c.SetArgs([]string{"explain", "--help"})
		if err := c.Execute(); err != nil || !strings.Contains(out.String(), "kubectl wayleave explain [command]") {
			t.Errorf("%s: %v\n%s", as, err, &out)
		}
	}
}

const corefile = ".:53 {\n    kubernetes cluster.local\n    forward . 192.0.2.53\n    cache 30\n}\n"

// A result has the same content in each format, and every file may be stdin.
func TestFormatsAndStdin(t *testing.T) {
	pods := "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n---\napiVersion: v1\nkind: Pod\n" +
		"metadata: {name: b, namespace: x}\n"
	for _, tc := range []struct{ args, stdin, text, key string }{
		{"version", "", "wayleave dev", "version"},
		{"render -f -", missionYAML, "10.96.100.50", "program"},
		{"explain policy pod/a pod/x/b:80 -n x -f -", pods, "allow", "explanation"},
		{"ingress check -f -", pods, "0 of 0 Ingresses", "report"},
		{"import kube-proxy -- --proxy-mode=ipvs", "", "mode: ipvs", "mode"},
		{"import corefile -f -", corefile, "dns:", "dns"},
		{"dns import-corefile -", corefile, "dns:", "dns"},
	} {
		text, errs, status := run(t, tc.stdin, strings.Fields(tc.args)...)
		if status != 0 || !strings.Contains(text, tc.text) {
			t.Errorf("%s: status %d, %s%s; want %s", tc.args, status, text, errs, tc.text)
		}
		args := insert(strings.Fields(tc.args), "-o", "json")
		raw, errs, status := run(t, tc.stdin, args...)
		var fromJSON, fromYAML map[string]any
		if err := json.Unmarshal([]byte(raw), &fromJSON); err != nil || status != 0 || fromJSON[tc.key] == nil {
			t.Errorf("%v: status %d, %v: %s%s", args, status, err, raw, errs)
		}
		args = insert(strings.Fields(tc.args), "--output=yaml")
		raw, errs, status = run(t, tc.stdin, args...)
		if err := yaml.Unmarshal([]byte(raw), &fromYAML); err != nil || status != 0 {
			t.Errorf("%v: status %d, %v: %s%s", args, status, err, raw, errs)
		}
		a, _ := json.Marshal(fromJSON)
		if b, _ := json.Marshal(fromYAML); !bytes.Equal(a, b) {
			t.Errorf("%s: JSON is %s, YAML is %s", tc.args, a, b)
		}
	}
}

// insert puts flags in front of a "--".
func insert(args []string, flags ...string) []string {
	if i := slices.Index(args, "--"); i >= 0 {
		return slices.Insert(args, i, flags...)
	}
	return append(args, flags...)
}

func TestTheReferenceOfCommandsIsFresh(t *testing.T) {
	have, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := cli.Markdown(commands.Root(deploy.Release{}, nil, "")); !bytes.Equal(have, want) {
		t.Error("docs/cli.md is stale; run `make gen`")
	}
	for _, c := range leaves(root()) {
		if shown := strings.Contains(string(have), "\n## "+c.CommandPath()+"\n"); shown == (c.Hidden || ofCobra(c)) {
			t.Errorf("%s: shown in docs/cli.md is %v", c.CommandPath(), shown)
		}
	}
}
