package build

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/lab/progress"
)

func testCache(t *testing.T) *Cache {
	return &Cache{Dir: t.TempDir(), Progress: progress.New(io.Discard)}
}

// writer returns a make function that writes a file and counts its calls.
func writer(calls *int) func(string) error {
	return func(dir string) error {
		*calls++
		return os.WriteFile(filepath.Join(dir, "f"), nil, 0o644)
	}
}

func TestMadeOncePerInputs(t *testing.T) {
	c, calls := testCache(t), 0
	one, err1 := c.Make("a", "a", []string{"x", "y"}, writer(&calls))
	again, err2 := c.Make("a", "a", []string{"x", "y"}, writer(&calls))
	other, err3 := c.Make("a", "a", []string{"xy"}, writer(&calls))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if one != again || one == other || calls != 2 {
		t.Errorf("got %s, %s, %s after %d calls", one, again, other, calls)
	}
}

func TestFailedMakeLeavesNothing(t *testing.T) {
	c, calls := testCache(t), 0
	_, err := c.Make("a", "the thing", nil, func(dir string) error {
		return errors.Join(writer(&calls)(dir), errors.New("no luck"))
	})
	if err == nil || !strings.Contains(err.Error(), "the thing") {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(c.Dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := c.Make("a", "the thing", nil, writer(&calls)); err != nil || calls != 2 {
		t.Errorf("a second try: %v, %d calls", err, calls)
	}
}

// What was unpacked may set the date of the folder; it must not be taken for
// unused because of that.
func TestOnlyUnusedArtifactsOfThatNameGo(t *testing.T) {
	c, calls := testCache(t), 0
	old := time.Now().Add(-2 * unusedAfter)
	aged := func(dir string) error { return errors.Join(writer(&calls)(dir), os.Chtimes(dir, old, old)) }
	unused, err1 := c.Make("a", "a", []string{"1"}, aged)
	namesake, err2 := c.Make("a-b", "a-b", []string{"1"}, aged)
	err3 := errors.Join(os.Chtimes(unused, old, old), os.Chtimes(namesake, old, old))
	fresh, err4 := c.Make("a", "a", []string{"2"}, aged)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{unused: false, namesake: true, fresh: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %t, want %t", filepath.Base(dir), err == nil, want)
		}
	}
}

func TestLockIsExclusive(t *testing.T) {
	c := testCache(t)
	unlock, err := c.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	second, err := c.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second()
}

func TestFailureShowsTheEndOfTheOutput(t *testing.T) {
	err := testCache(t).run(t.Context(), "/", []string{"WORD=needle"}, "sh", "-c", "seq 9999; echo $WORD; exit 3")
	if err == nil || !strings.Contains(err.Error(), "needle") || len(err.Error()) > 5000 {
		t.Errorf("got %.300v", err)
	}
}

func TestRequirement(t *testing.T) {
	const mod = "module x\n\nrequire (\n\tk8s.io/kubernetes v1.36.3\n\tk8s.io/kubernetes/x v1.2.3 // " +
		"indirect\n)\n\nrequire a.b/c v0.1.0\n\nreplace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n"
	for module, want := range map[string]string{"k8s.io/kubernetes": "v1.36.3", "a.b/c": "v0.1.0",
		"k8s.io/api": "", "x": ""} {
		got, err := requirement(mod, module)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", module, got, err, want)
		}
	}
}

func TestCodename(t *testing.T) {
	for text, want := range map[string]string{"ID=debian\nVERSION_CODENAME=bookworm\n": "bookworm",
		"VERSION_CODENAME=\"noble\"": "noble", "ID=x": "unknown"} {
		if got := codename(text); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
