package main

import (
	"os"
	"strings"
	"testing"

	"wayleave.dev/internal/cli"
)

// What newcomers try is answered by one line, which names the object and what to do.
func TestMistakesAreAnsweredWithAdvice(t *testing.T) {
	t.Setenv("KUBECONFIG", "none.yaml")
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{"word.yaml": "hello\n", "list.yaml": "- a\n", "bad.yaml": "a: [\n",
		"kind.yaml": "kind: [a]\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for args, want := range map[string]string{
		"status --no-such-flag":              "`wayleave status --help` lists the flags",
		"status more":                        `found "more"; no argument is allowed: ` + "`wayleave status --help`",
		"rollback --to x":                    `--to: found "x"; a number is allowed`,
		"install --timeout soon":             `--timeout: found "soon"; a duration is allowed, such as 30s`,
		"install --dry-run=maybe":            `--dry-run: found "maybe"; true and false are allowed`,
		"status -o table":                    `--output: found "table"; text, json, yaml are allowed`,
		"render":                             "--filename: not given; a file of Services",
		"import metallb":                     "usage: wayleave import metallb -f FILE|-",
		"explain policy a":                   "FROM and TO:PORT/PROTO are needed: found 1 arguments; usage: ",
		"dns query":                          "NAME is needed",
		"dns query web":                      "--as: not given; the pod that asks is needed",
		"log-level loud":                     `found "loud"; one of debug, info, warn, error is allowed`,
		"uninstall --cluster --verify":       "--cluster and --verify: only one of them is allowed",
		"dns":                                "`wayleave dns --help` lists the commands",
		"status":                             "no cluster: found none in none.yaml; give --kubeconfig",
		"check --kubeconfig word.yaml":       "found no apiVersion and kind; a file of kind Config is allowed",
		"ingress check -f word.yaml":         "word.yaml: document 1: found text; an object with apiVersion and kind",
		"ingress check -f list.yaml":         "list.yaml: document 1: found a list; an object",
		"ingress check -f bad.yaml":          "bad.yaml: document 1: not YAML: yaml: line 1",
		"ingress check -f kind.yaml":         "kind.yaml: document 1: apiVersion, kind or metadata: ",
		"explain policy pod/a pod/b:80 -f .": ".: document 1: read .: is a directory",
	} {
		out, errs, status := run(t, "", strings.Fields(args)...)
		if status != cli.Unknown || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, want) {
			t.Errorf("%s: status %d, printed %q and %q; want %q", args, status, out, errs, want)
		}
	}
}

// Flags for a cluster never clean the machine that the command runs on.
func TestUninstallOfANodeRefusesFlagsForACluster(t *testing.T) {
	for _, flag := range []string{"--yes", "--leave=node1", "--kubeconfig=admin.conf", "--context=a", "-n=kube-system",
		"-f=wayleave.yaml", "--image=wayleave.dev/wayleave:v1", "--timeout=1m"} {
		// --verify: if the flag is not refused, the test changes nothing either.
		out, errs, status := run(t, "", "uninstall", "--verify", flag)
		if status != cli.Unknown || out != "" || !strings.Contains(errs, "is allowed with --cluster only") {
			t.Errorf("%s: status %d, printed %q and %q", flag, status, out, errs)
		}
	}
}
