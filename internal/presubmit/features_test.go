package presubmit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wayleave.dev/internal/docs"
)

// features reads the rows of all pages in docs/features.
func features(t *testing.T) []docs.Page {
	t.Helper()
	pages, err := docs.Pages(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// A row says yes, with tests that exist, or no, with none.
func TestEveryFeatureHasItsTest(t *testing.T) {
	rows := 0
	for _, p := range features(t) {
		for _, f := range p.Features {
			rows++
			switch {
			case !f.Built && len(f.Tests) > 0:
				t.Errorf("%v is not built, but names tests", f)
			case f.Built && len(f.Tests) == 0:
				t.Errorf("%v has no test", f)
			}
			for _, name := range f.Tests {
				if err := exists(root(t), name); err != nil {
					t.Errorf("%v: %v", f, err)
				}
			}
		}
	}
	if rows < 400 {
		t.Fatalf("only %d rows were read", rows)
	}
}

// The generated pages are those that `make gen` writes.
func TestGeneratedPagesAreFresh(t *testing.T) {
	files, err := docs.Files(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 2 {
		t.Errorf("only %d pages are generated; no page has numbers of benchmarks", len(files))
	}
	for file, want := range files {
		have, err := os.ReadFile(filepath.Join(root(t), file))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is stale; run `make gen`", file)
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
