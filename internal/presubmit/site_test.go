package presubmit

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The navigation of the documentation's site (mkdocs.yml) has every page once. Decision records are found by their
// index.
func TestTheSiteHasEveryPage(t *testing.T) {
	text, err := os.ReadFile("../../mkdocs.yml")
	if err != nil {
		t.Fatal(err)
	}
	_, nav, ok := strings.Cut(string(text), "\nnav:\n")
	if !ok {
		t.Fatal("mkdocs.yml has no nav")
	}
	listed := map[string]int{}
	for _, m := range regexp.MustCompile(`(\S+\.md)`).FindAllString(nav, -1) {
		listed[m]++
	}
	pages := []string{"index.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"}
	if _, err := os.Stat("../../CHANGELOG.md"); err == nil {
		pages = append(pages, "CHANGELOG.md")
	}
	err = filepath.WalkDir("../../docs", func(file string, _ fs.DirEntry, err error) error {
		page := strings.TrimPrefix(filepath.ToSlash(file), "../../docs/")
		if err == nil && filepath.Ext(page) == ".md" && !strings.HasPrefix(page, "decisions/0") {
			pages = append(pages, page)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if listed[page] != 1 {
			t.Errorf("mkdocs.yml lists %s %d times; list it once, under nav", page, listed[page])
		}
	}
	for page := range listed {
		if !slices.Contains(pages, page) {
			t.Errorf("mkdocs.yml lists %s, which does not exist", page)
		}
	}
}
