package presubmit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	gopackages "golang.org/x/tools/go/packages"
)

// The command type-checks for macOS, so nothing that it imports there needs a node's kernel. Types are checked from
// source, without function bodies of libraries: to compile them for another platform takes minutes. `make release`
// compiles them for all.
func TestTheCommandBuildsForLaptops(t *testing.T) {
	env := append(os.Environ(), "GOOS=darwin", "GOARCH=arm64", "CGO_ENABLED=0")
	names := own(t, env)
	for _, command := range []string{"cmd/wayleave/clustercommands", "connectivity", "overview", "check",
		"bundle", "install"} {
		if !slices.Contains(names, module+command) {
			t.Errorf("the command for macOS lacks %s", command)
		}
	}
	for _, p := range load(t, env, names) {
		for _, err := range p.Errors {
			t.Error(err)
		}
	}
}

// own returns the packages of this module that the command imports on the platform of env.
func own(t *testing.T, env []string) []string {
	t.Helper()
	list := exec.Command("go", "list", "-deps", "wayleave.dev/cmd/wayleave")
	list.Env = env
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for name := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(name, "wayleave.dev/") {
			all = append(all, name)
		}
	}
	if len(all) < 10 {
		t.Fatalf("the command imports %q", all)
	}
	return all
}

func load(t *testing.T, env, names []string) []*gopackages.Package {
	t.Helper()
	found, err := gopackages.Load(&gopackages.Config{
		Mode: gopackages.NeedName | gopackages.NeedImports | gopackages.NeedDeps | gopackages.NeedTypes |
			gopackages.NeedSyntax | gopackages.NeedTypesInfo | gopackages.NeedTypesSizes,
		Env: env,
		ParseFile: func(files *token.FileSet, name string, text []byte) (*ast.File, error) {
			return parser.ParseFile(files, name, text, parser.SkipObjectResolution)
		},
	}, names...)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
