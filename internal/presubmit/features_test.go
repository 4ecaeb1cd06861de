package presubmit

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// feature is a row of docs/features.md.
type feature struct {
	line  int
	text  string
	state string
	tests []string
}

// features reads the rows "| what | yes/no | tests |" of docs/features.md.
func features(t *testing.T) []feature {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root(t), "docs", "features.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []feature
	n := 0
	for line := range strings.Lines(string(raw)) {
		n++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 3 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if cells[1] == "state" || strings.HasPrefix(cells[1], "--") {
			continue
		}
		rows = append(rows, feature{n, cells[0], cells[1], strings.Fields(strings.ReplaceAll(cells[2], ",", " "))})
	}
	return rows
}

// A row says yes, with tests that exist, or no, with none.
func TestEveryFeatureHasItsTest(t *testing.T) {
	rows := features(t)
	if len(rows) < 20 {
		t.Fatalf("only %d rows were read", len(rows))
	}
	for _, f := range rows {
		at := fmt.Sprintf("docs/features.md:%d: %q", f.line, f.text)
		switch {
		case f.state == "no" && len(f.tests) == 0:
		case f.state == "no":
			t.Errorf("%s is not built, but names tests", at)
		case f.state != "yes":
			t.Errorf("%s: state %q; yes and no are allowed", at, f.state)
		case len(f.tests) == 0:
			t.Errorf("%s has no test", at)
		}
		for _, name := range f.tests {
			if err := exists(root(t), name); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
	}
}

// exists checks that "folder.TestName" is a Go test, or "demo:name" a check of
// the demo.
func exists(root, name string) error {
	if check, ok := strings.CutPrefix(name, "demo:"); ok {
		return grep(filepath.Join(root, "lab", "demo", "*.go"), regexp.QuoteMeta(`"`+check+`"`), name)
	}
	folder, test, ok := strings.Cut(name, ".Test")
	if !ok {
		return fmt.Errorf("test %q: folder.TestName or demo:name is allowed", name)
	}
	return grep(filepath.Join(root, folder, "*_test.go"), `(?m)^func Test`+regexp.QuoteMeta(test)+`\(`, name)
}

func grep(glob, pattern, name string) error {
	files, err := filepath.Glob(glob)
	if err != nil {
		return err
	}
	re := regexp.MustCompile(pattern)
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if re.Match(raw) {
			return nil
		}
	}
	return fmt.Errorf("test %q does not exist in %s", name, filepath.Base(filepath.Dir(glob)))
}
