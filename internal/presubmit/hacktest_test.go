package presubmit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// inHackTest is a list that hack/test has.
func inHackTest(t *testing.T, pattern, sep string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root(t), "hack", "test"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(pattern).FindStringSubmatch(string(raw))
	if m == nil {
		t.Fatalf("hack/test has nothing like %s", pattern)
	}
	return strings.FieldsFunc(m[1], func(r rune) bool { return strings.ContainsRune(sep, r) })
}

// hack/test names tests that run without the race detector, and folders: a name that is wrong there would run nothing.
func TestTestsWithoutTheRaceDetectorExist(t *testing.T) {
	folders := slices.Concat(inHackTest(t, `(?m)^plain_in=\(([^)]*)\)`, " \n"),
		inHackTest(t, `(?m)^alone_in=\(([^)]*)\)`, " \n"))
	used := map[string]bool{}
	for _, name := range inHackTest(t, `(?m)^plain='\^\(([^)]*)\)\$'`, "|") {
		if !slices.ContainsFunc(folders, func(f string) bool {
			if exists(root(t), strings.TrimPrefix(f, "./")+"."+name) != nil {
				return false
			}
			used[f] = true
			return true
		}) {
			t.Errorf("hack/test: plain: %s is in none of %s", name, folders)
		}
	}
	for _, f := range folders {
		if !used[f] {
			t.Errorf("hack/test: plain_in, alone_in: %s has none of the tests", f)
		}
	}
	for _, f := range inHackTest(t, `(?m)^first=\(([^)]*)\)`, " \n") {
		if list, err := filepath.Glob(filepath.Join(root(t), f, "*_test.go")); err != nil || len(list) == 0 {
			t.Errorf("hack/test: first: %s has no tests, %v", f, err)
		}
	}
}

// Packages of which no test runs with the race detector start no goroutine, so that there is no race.
func TestPackagesWithoutTheRaceDetectorStartNoGoroutine(t *testing.T) {
	for _, folder := range inHackTest(t, `(?m)^single=\(([^)]*)\)`, " \n") {
		files, err := filepath.Glob(filepath.Join(root(t), folder, "*.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("hack/test: single: %s has no code, %v", folder, err)
		}
		for _, name := range files {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.SelectorExpr)
				_, isGo := n.(*ast.GoStmt)
				if isGo || ok && slices.Contains([]string{"Go", "Parallel", "AfterFunc", "Serve"}, call.Sel.Name) {
					t.Errorf("%s starts a goroutine: take %s out of hack/test's single", set.Position(n.Pos()), folder)
				}
				return true
			})
		}
	}
}
