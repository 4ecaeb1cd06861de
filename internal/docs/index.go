package docs

import (
	_ "embed"
	"fmt"
	"strings"
)

const indexName = "README.md"

// indexHead ends with the head of the table.
//
//go:embed index.md
var indexHead string

// Index is docs/features/README.md: the pages with the number of their rows.
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

// Files are the generated pages, by path from the top of the checkout.
func Files(pages []Page) map[string][]byte {
	return map[string][]byte{Folder + "/" + indexName: Index(pages)}
}
