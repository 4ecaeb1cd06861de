package presubmit

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// hack/test names tests that run without the race detector, and folders: a name that is wrong there would run nothing.
func TestTestsWithoutTheRaceDetectorExist(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root(t), "hack", "test"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(pattern, sep string) []string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(string(raw))
		if m == nil {
			t.Fatalf("hack/test has nothing like %s", pattern)
		}
		return strings.FieldsFunc(m[1], func(r rune) bool { return strings.ContainsRune(sep, r) })
	}
	folders := list(`(?m)^plain_in=\(([^)]*)\)`, " \n")
	used := map[string]bool{}
	for _, name := range list(`(?m)^plain='\^\(([^)]*)\)\$'`, "|") {
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
			t.Errorf("hack/test: plain_in: %s has none of the tests", f)
		}
	}
	for _, f := range list(`(?m)^first=\(([^)]*)\)`, " \n") {
		if list, err := filepath.Glob(filepath.Join(root(t), f, "*_test.go")); err != nil || len(list) == 0 {
			t.Errorf("hack/test: first: %s has no tests, %v", f, err)
		}
	}
}
