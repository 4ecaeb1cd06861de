package manifest

import (
	"os"
	"regexp"
	"testing"
)

// The examples of pages can be applied.
func TestExamplesOfBGPAreValid(t *testing.T) {
	fence := regexp.MustCompile("(?s)```yaml\n(.*?)```")
	for _, page := range []string{"bgp.md", "bgp-objects.md"} {
		raw, err := os.ReadFile("../../docs/" + page)
		if err != nil {
			t.Fatal(err)
		}
		found := fence.FindAllSubmatch(raw, -1)
		if len(found) == 0 {
			t.Errorf("%s has no example", page)
		}
		for _, m := range found {
			if _, problems, err := read(t, string(m[1])); err != nil || len(problems) > 0 {
				t.Errorf("%s: %v %v\n%s", page, err, problems, m[1])
			}
		}
	}
}
