// Command site prepares the pages of the documentation for the site generator: `make docs`.
//
// The pages are written to be read in the repository. Links to other pages are kept, links to source code become plain
// text, and lists get the empty line that the generator's Markdown requires.
package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: site CHECKOUT FOLDER")
		os.Exit(2)
	}
	if err := lay(os.DirFS(os.Args[1]), os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "site:", err)
		os.Exit(1)
	}
}

//go:embed site.css
var style []byte

// places maps the pages at the top of the checkout to their names in the site. Pages in docs keep their path below it.
var places = map[string]string{
	"README.md": "index.md", "ARCHITECTURE.md": "ARCHITECTURE.md", "CONTRIBUTING.md": "CONTRIBUTING.md",
	"SECURITY.md": "SECURITY.md", "CHANGELOG.md": "CHANGELOG.md",
}

// place returns the site's path of a file of the checkout; false if the site does not have it.
func place(file string) (string, bool) {
	if to, ok := places[file]; ok {
		return to, true
	}
	if below, ok := strings.CutPrefix(file, "docs/"); ok && slices.Contains([]string{".md", ".svg", ".png"},
		path.Ext(file)) {
		return below, true
	}
	return "", false
}

// lay writes the site's pages and pictures to the folder.
func lay(top fs.FS, folder string) error {
	files := []string{}
	for file := range places {
		if _, err := fs.Stat(top, file); err == nil {
			files = append(files, file)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := fs.WalkDir(top, "docs", func(file string, _ fs.DirEntry, err error) error {
		if _, ok := place(file); ok && err == nil {
			files = append(files, file)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "site.css"), style, 0o644); err != nil {
		return err
	}
	for _, file := range files {
		text, err := fs.ReadFile(top, file)
		if err != nil {
			return err
		}
		to, _ := place(file)
		if path.Ext(file) == ".md" {
			text = []byte(page(file, string(text)))
		}
		to = filepath.Join(folder, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// page returns the text of a page for the site.
func page(file, text string) string {
	var out, prose strings.Builder // prose collects lines, because a link may span two
	before, inCode := "", false
	for line := range strings.Lines(text) {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		if code := inCode || fence || strings.HasPrefix(line, "    "); code {
			out.WriteString(relink(file, prose.String()) + line)
			prose.Reset()
		} else {
			if item(line) && !item(before) && strings.TrimSpace(before) != "" && !strings.HasPrefix(before, " ") {
				prose.WriteByte('\n')
			}
			prose.WriteString(line)
		}
		inCode = inCode != fence
		before = line
	}
	return out.String() + relink(file, prose.String())
}

var bullet = regexp.MustCompile(`^([-*]|[0-9]{1,3}\.) `)

// item reports whether a line begins an item of a list.
func item(line string) bool { return bullet.MatchString(line) }

var link = regexp.MustCompile(`(!?)\[([^\]]*)\]\(([^)\s]*)\)`)

// relink converts the links of a text to those of the site.
func relink(file, text string) string {
	return link.ReplaceAllStringFunc(text, func(whole string) string {
		m := link.FindStringSubmatch(whole)
		target, anchor, _ := strings.Cut(m[3], "#")
		if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			return whole
		}
		from, _ := place(file)
		to, ok := place(path.Join(path.Dir(file), target))
		if !ok {
			return m[2]
		}
		relative, err := filepath.Rel(path.Dir(from), to)
		if err != nil {
			return m[2]
		}
		if anchor != "" {
			relative += "#" + anchor
		}
		return m[1] + "[" + m[2] + "](" + filepath.ToSlash(relative) + ")"
	})
}
