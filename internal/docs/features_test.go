package docs

import (
	"strings"
	"testing"
	"testing/fstest"
)

func page(rows ...string) fstest.MapFS {
	text := "# Features: tea\n\nHot drinks. See [tea.md](../tea.md).\n\n## Cups\n\n" +
		"| what | state | tests |\n|---|---|---|\n" +
		strings.Join(rows, "\n") + "\n"
	return fstest.MapFS{"docs/features/tea.md": {Data: []byte(text)}, "docs/features/README.md": {Data: []byte("x")}}
}

func TestPages(t *testing.T) {
	pages, err := Pages(page("| Green | yes | cup.TestGreen demo:green |", "| Black | no | |"))
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) != 1 || pages[0].Title != "tea" || len(pages[0].Features) != 2 {
		t.Fatalf("pages: %+v", pages)
	}
	green, black := pages[0].Features[0], pages[0].Features[1]
	if !green.Built || len(green.Tests) != 2 || green.Line != 9 || black.Built || len(black.Tests) != 0 {
		t.Errorf("rows: %+v, %+v", green, black)
	}
	want := "| [tea](tea.md) | 1 | 1 | Hot drinks. See [tea.md](../tea.md). |\n"
	if have := string(Index(pages)); !strings.HasSuffix(have, want) {
		t.Errorf("index:\n%s\nwant at the end: %s", have, want)
	}
}

func TestBadRows(t *testing.T) {
	for row, want := range map[string]string{
		"| " + strings.Repeat("word ", 26) + "| yes | cup.TestGreen |": "26 words",
		"|  | yes | cup.TestGreen |":                                   "0 words",
		"| Green | maybe | cup.TestGreen |":                            `state: "maybe"`,
		"| Green | yes |":                                              "2 cells",
	} {
		_, err := Pages(page(row))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "tea.md:9") {
			t.Errorf("%s: %v; want %q and the line", row, err, want)
		}
	}
}
