package cli

import (
	"bytes"
	"encoding/json"
	"testing"
)

// What a terminal would obey is shown, wherever writes split the text; all else is as it was.
func TestATerminalObeysNothingOfTheOutput(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain\ttext\nä€😀 \"q\" \\": "plain\ttext\nä€😀 \"q\" \\",
		"\x1b]0;title\a\x1b[2J":     `\u001b]0;title\u0007\u001b[2J`,
		"over\rwritten\b":           `over\u000dwritten\u0008`,
		"\u009b2J\u007f":            `\u009b2J\u007f`,
		"\x9b2J":                    `\x9b2J`,
		"a\u202eb\u2066c\u2028":     `a\u202eb\u2066c\u2028`,
		"cut \xe2\x82":              `cut \xe2\x82`,
	} {
		for at := range len(in) + 1 {
			var b bytes.Buffer
			v := visibly(&b)
			for _, part := range []string{in[:at], in[at:]} {
				if n, err := v.Write([]byte(part)); err != nil || n != len(part) {
					t.Fatal(n, err)
				}
			}
			v.end()
			if got := b.String(); got != want {
				t.Fatalf("%q, split at %d: %q, want %q", in, at, got, want)
			}
		}
		var b bytes.Buffer
		if err := json.NewEncoder(visibly(&b)).Encode(in); err != nil {
			t.Fatal(err)
		}
		var back, want string
		plain, _ := json.Marshal(in)
		_ = json.Unmarshal(plain, &want)
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || back != want {
			t.Errorf("JSON of %q is read as %q: %v", in, back, err)
		}
	}
}
