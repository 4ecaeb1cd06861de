package docs

import (
	_ "embed"
	"fmt"
	"io/fs"
	"strings"
)

const indexName = "README.md"

// indexHead ends with the head of the table.
//
//go:embed index.md
var indexHead string

// Index returns docs/features/README.md: the pages with the number of their rows.
func Index(pages []Page) []byte {
	var b strings.Builder
	b.WriteString(indexHead)
	for _, p := range pages {
		built := 0
		for _, f := range p.Features {
			if f.Built {
				built++
			}
		}
		fmt.Fprintf(&b, "| [%s](%s) | %d | %d | %s |\n", p.Title, p.Name, built, len(p.Features)-built, p.Summary)
	}
	return []byte(b.String())
}

// Files returns the generated pages, by path from the top of the checkout: the index of features, and the pages with
// places for numbers of benchmarks.
func Files(top fs.FS) (map[string][]byte, error) {
	features, err := Pages(top)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{Folder + "/" + indexName: Index(features)}
	pages, err := fs.Glob(top, "docs/*.md")
	if err != nil {
		return nil, err
	}
	for _, page := range append(pages, "README.md") {
		text, err := fs.ReadFile(top, page)
		if err != nil {
			return nil, err
		}
		filled, err := Fill(top, string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", page, err)
		}
		if number.MatchString(filled) {
			files[page] = []byte(filled)
		}
	}
	return files, nil
}
