// Package docs reads the pages of the documentation that name tests, and generates parts of pages.
package docs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Folder is the folder of the pages of features, from the top of the checkout.
const Folder = "docs/features"

// MaxWords is the maximum number of words in a feature's row.
const MaxWords = 25

// Feature is a row of a page in docs/features.
type Feature struct {
	// Page is the file's name, and Line counts from 1.
	Page string
	Line int
	// Text says what works, in at most MaxWords words.
	Text string
	// Built is false for features that are refused, because they do not exist yet.
	Built bool
	// Tests prove the row: folder.TestName, or demo:check.
	Tests []string
}

// String returns the place of the row as editors print it.
func (f Feature) String() string { return fmt.Sprintf("%s/%s:%d: %q", Folder, f.Page, f.Line, f.Text) }

// Page is one file of docs/features.
type Page struct {
	Name, Title, Summary string
	Features             []Feature
}

// Pages reads all pages of docs/features, in the order of their names, except for the generated index. top is the
// checkout. The error names each invalid row.
func Pages(top fs.FS) ([]Page, error) {
	files, err := fs.Glob(top, path.Join(Folder, "*.md"))
	if err != nil {
		return nil, err
	}
	var pages []Page
	var errs []error
	for _, file := range files {
		if path.Base(file) == indexName {
			continue
		}
		text, err := fs.ReadFile(top, file)
		if err != nil {
			return nil, err
		}
		p, err := readPage(path.Base(file), string(text))
		errs = append(errs, err)
		pages = append(pages, p)
	}
	return pages, errors.Join(errs...)
}

// readPage parses a title "# Features: …", a first paragraph and rows "| what | yes | tests |".
func readPage(name, text string) (Page, error) {
	p := Page{Name: name}
	var errs []error
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		switch {
		case p.Title == "":
			title, ok := strings.CutPrefix(line, "# Features: ")
			if !ok {
				return p, fmt.Errorf("%s/%s: title: %q; \"# Features: NAME\" is allowed", Folder, name, line)
			}
			p.Title = title
		case p.Summary == "" && line != "" && line[0] != '#' && line[0] != '|':
			p.Summary = line
		case strings.HasPrefix(line, "|"):
			f, ok, err := readRow(line)
			f.Page, f.Line = name, n
			if err != nil {
				errs = append(errs, fmt.Errorf("%v: %w", f, err))
			} else if ok {
				p.Features = append(p.Features, f)
			}
		}
	}
	return p, errors.Join(errs...)
}

// readRow parses a row of a table; ok is false for its head and the line below.
func readRow(line string) (f Feature, ok bool, err error) {
	cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "|"), "|"), "|")
	if len(cells) != 3 {
		return f, false, fmt.Errorf("%d cells; 3 are allowed", len(cells))
	}
	f.Text = strings.TrimSpace(cells[0])
	f.Tests = strings.Fields(cells[2])
	switch state := strings.TrimSpace(cells[1]); {
	case state == "state" || strings.HasPrefix(state, "--"):
		return f, false, nil
	case state == "yes" || state == "no":
		f.Built = state == "yes"
	default:
		return f, false, fmt.Errorf("state: %q; yes and no are allowed", state)
	}
	if n := len(strings.Fields(f.Text)); n == 0 || n > MaxWords {
		return f, false, fmt.Errorf("%d words; 1 to %d are allowed", n, MaxWords)
	}
	return f, true, nil
}
