package presubmit

import (
	"path/filepath"
	"strings"
	"testing"
)

// maxRecord is the most lines of a decision record.
const maxRecord = 40

// A decision record is short, has a date and its three parts, and is in the index.
func TestDecisionRecords(t *testing.T) {
	folder := filepath.Join(root(t), "docs", "decisions")
	records, err := filepath.Glob(filepath.Join(folder, "[0-9]*.md"))
	if err != nil {
		t.Fatal(err)
	}
	if len(records) < 30 {
		t.Fatalf("only %d records were found", len(records))
	}
	index := read(t, filepath.Join(folder, "README.md"))
	for _, file := range records {
		text, name := read(t, file), filepath.Base(file)
		if n := strings.Count(text, "\n"); n > maxRecord {
			t.Errorf("%s: %d lines; %d are allowed", name, n, maxRecord)
		}
		for _, part := range []string{"\nDate: ", "\n## Context\n", "\n## Decision\n", "\n## Consequence"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s: no %q", name, strings.TrimSpace(part))
			}
		}
		if !strings.Contains(index, "("+name+")") {
			t.Errorf("%s is not in docs/decisions/README.md", name)
		}
	}
}
