package docs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// number is a place in a page for a number that a benchmark measured:
//
//	<!-- bench FILE; HEADING; ROW; COLUMN -->VALUE<!-- /bench -->
//
// FILE is a page of docs that a benchmark wrote. HEADING is empty for the first table of FILE. ROW is the row's first
// cell, or its first two with ", " between them. COLUMN is a column's title, or "TITLE, ratio" for the first column
// "ratio" after it.
var number = regexp.MustCompile(`<!-- bench ([^;>]+); ([^;>]*); ([^;>]+); ([^;>]+) -->[^<]*<!-- /bench -->`)

// Fill returns a page with the current value in each place for a number. top is the checkout. The error names each
// place without a value.
func Fill(top fs.FS, text string) (string, error) {
	var errs []error
	text = number.ReplaceAllStringFunc(text, func(place string) string {
		m := number.FindStringSubmatch(place)
		value, err := lookUp(top, m[1], m[2], m[3], m[4])
		if err != nil {
			errs = append(errs, err)
			return place
		}
		return fmt.Sprintf("<!-- bench %s; %s; %s; %s -->%s<!-- /bench -->", m[1], m[2], m[3], m[4], value)
	})
	if n := strings.Count(text, "<!-- bench ") - len(number.FindAllString(text, -1)); n != 0 {
		errs = append(errs, fmt.Errorf("%d places for numbers are not of the form %v", n, number))
	}
	return text, errors.Join(errs...)
}

// lookUp returns one cell of a page that a benchmark wrote.
func lookUp(top fs.FS, file, heading, row, column string) (string, error) {
	text, err := fs.ReadFile(top, path.Join("docs", file))
	if err != nil {
		return "", err
	}
	var head []string
	here := heading == ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if title, ok := strings.CutPrefix(line, "## "); ok {
			here, head = title == heading, nil
		}
		if !here || !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "*")
		}
		if head == nil {
			head = cells
			continue
		}
		if cells[0] != row && (len(cells) < 2 || cells[0]+", "+cells[1] != row) {
			continue
		}
		if i := columnOf(head, column); i >= 0 && i < len(cells) {
			return cells[i], nil
		}
	}
	return "", fmt.Errorf("docs/%s: no cell %q of row %q below %q", file, column, row, heading)
}

// columnOf returns the index of a column; -1 if there is none.
func columnOf(head []string, column string) int {
	title, isRatio := strings.CutSuffix(column, ", ratio")
	at := slices.Index(head, title)
	if !isRatio || at < 0 {
		return at
	}
	if next := slices.Index(head[at:], "ratio"); next >= 0 {
		return at + next
	}
	return -1
}
