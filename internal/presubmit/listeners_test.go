package presubmit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/internal/listeners"
)

// Each listener of docs/security.md names a test that floods it.
func TestTheTestsOfListenersExist(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root(t), "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := listeners.Parse(string(page))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		for _, name := range strings.Fields(r.Cells[len(r.Cells)-1]) {
			if err := exists(root(t), name); err != nil {
				t.Errorf("%s: %v", r, err)
			}
		}
	}
}
