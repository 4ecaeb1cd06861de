package docs

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestFill(t *testing.T) {
	top := fstest.MapFS{"docs/bench-tea.md": {Data: []byte("# Tea\n\n| cups | ours |\n|---|---|\n| 1 | 9 |\n\n" +
		"## Time, ms\n\n| what | cups | ours | ratio | milk | ratio |\n|---|---|---|---|---|---|\n" +
		"| green, hot | 1 | 4.0 | **0.5** | 6.0 | 1.5 |\n| green, hot | 10 | 7.1 | – | – | – |\n")}}
	for place, want := range map[string]string{
		"bench-tea.md; ; 1; ours":                         "9",
		"bench-tea.md; Time, ms; green, hot; ours":        "4.0",
		"bench-tea.md; Time, ms; green, hot; ratio":       "0.5",
		"bench-tea.md; Time, ms; green, hot; milk, ratio": "1.5",
		"bench-tea.md; Time, ms; green, hot, 10; ours":    "7.1",
	} {
		text := "a <!-- bench " + place + " -->old<!-- /bench --> b"
		have, err := Fill(top, text)
		if err != nil {
			t.Error(err)
		}
		if want := strings.Replace(text, "old", want, 1); have != want {
			t.Errorf("%q, want %q", have, want)
		}
	}
	for _, bad := range []string{
		"<!-- bench bench-tea.md; Time, ms; black; ours -->1<!-- /bench -->",
		"<!-- bench bench-tea.md; Time, ms; green, hot; theirs -->1<!-- /bench -->",
		"<!-- bench bench-tea.md; Time, ms; green, hot; theirs, ratio -->1<!-- /bench -->",
		"<!-- bench bench-coffee.md; Time, ms; black; ours -->1<!-- /bench -->",
		"<!-- bench bench-tea.md -->1<!-- /bench -->",
	} {
		if _, err := Fill(top, bad); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}
