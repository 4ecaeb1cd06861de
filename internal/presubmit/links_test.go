package presubmit

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

// link is a Markdown link to a file of the checkout, or to a heading.
var link = regexp.MustCompile(`\]\(([^()\s]+)\)`)

// document is a word that looks like the name of a page, and address one of another site.
var (
	document = regexp.MustCompile(`[A-Za-z0-9_][A-Za-z0-9_/.-]*\.md\b`)
	address  = regexp.MustCompile(`https?://\S+`)
)

// Each link of a page leads to a file of the checkout, and to a heading of that file.
func TestLinksOfPagesLeadSomewhere(t *testing.T) {
	links := 0
	for _, page := range pages(t) {
		for _, target := range targets(t, page) {
			links++
			file, anchor, _ := strings.Cut(target, "#")
			path := page
			if file != "" {
				path = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: link %s: %v", page, target, err)
			} else if anchor != "" && !anchors(t, path)[anchor] {
				t.Errorf("%s: link %s: %s has no such heading", page, target, path)
			}
		}
	}
	if links < 50 {
		t.Fatalf("only %d links were found", links)
	}
}

// No page names a page that is not in the checkout.
func TestNoPageIsCitedThatIsNotThere(t *testing.T) {
	names := map[string]bool{}
	for _, page := range pages(t) {
		names[filepath.Base(page)] = true
	}
	for _, page := range pages(t) {
		for _, name := range document.FindAllString(address.ReplaceAllString(read(t, page), ""), -1) {
			if !names[filepath.Base(name)] {
				t.Errorf("%s names %s, which is not in the checkout", page, name)
			}
		}
	}
}

// pages are the Markdown files of the checkout.
func pages(t *testing.T) []string { return find(t, ".md") }

// find lists files of the checkout by the end of their names. It leaves out what builds leave behind.
func find(t *testing.T, end string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && (name == "dist" || name == ".git") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, end) {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// targets are the links of a page that stay within the checkout.
func targets(t *testing.T, page string) []string {
	t.Helper()
	var list []string
	for line := range strings.Lines(proseOf(read(t, page))) {
		for _, m := range link.FindAllStringSubmatch(line, -1) {
			if !strings.Contains(m[1], "://") && !strings.HasPrefix(m[1], "mailto:") {
				list = append(list, m[1])
			}
		}
	}
	return list
}

// proseOf is a page without its fenced blocks.
func proseOf(text string) string {
	var b strings.Builder
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		} else if !fenced {
			b.WriteString(line)
		}
	}
	return b.String()
}

// anchors are the names of a page's headings, as GitHub makes them.
func anchors(t *testing.T, page string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for line := range strings.Lines(proseOf(read(t, page))) {
		heading := strings.TrimLeft(line, "#")
		if heading == line || !strings.HasPrefix(heading, " ") {
			continue
		}
		names[anchor(heading)] = true
	}
	return names
}

func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, strings.TrimSpace(heading))
}
