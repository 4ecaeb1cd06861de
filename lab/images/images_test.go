package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wayleave.dev/internal/execfile"
)

// fakeBusybox is what the wget script finds in the place of busybox: it says
// how it was called, or takes longer than any limit.
const fakeBusybox = `#!/bin/sh
if [ "$2" = slow ]; then exec sleep 300; fi
if [ "$2" = bad ]; then exit 7; fi
for word in "$@"; do printf '[%s]' "$word"; done
`

func TestWgetKeepsItsOwnLimit(t *testing.T) {
	dir := t.TempDir()
	if err := execfile.Install(filepath.Join(dir, "busybox"), []byte(fakeBusybox), 0o755); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "wget")
	if err := execfile.Install(script, wget, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"-O-", "http://backend"}, "[wget][-O-][http://backend]", 0},
		{[]string{"-q", "-T", "5", "-O-", "http://a b"}, "[wget][-q][-O-][http://a b]", 0},
		{[]string{"--spider", "--timeout=1", "nginx"}, "[wget][--spider][nginx]", 0},
		{[]string{"-T5", "nginx"}, "[wget][nginx]", 0},
		{[]string{"bad"}, "", 7},
		{[]string{"bad", "-T", "5"}, "", 7},
		{[]string{"slow", "-T", "0.1"}, "wget: download timed out\n", 1},
	} {
		cmd := exec.Command("sh", append([]string{script}, c.args...)...)
		cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
		out, _ := cmd.CombinedOutput() // the exit status is compared below
		if string(out) != c.want || cmd.ProcessState.ExitCode() != c.code {
			t.Errorf("%s: got %q, status %d, want %q, %d", strings.Join(c.args, " "), out, cmd.ProcessState.ExitCode(),
				c.want, c.code)
		}
	}
}
