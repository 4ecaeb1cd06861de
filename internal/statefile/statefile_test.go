package statefile

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A file that is cut at any byte, or has garbage in it, is told by name, and the copy from before is read.
func TestADamagedFileIsNeverFatal(t *testing.T) {
	first, second := map[string]string{"a": "1"}, map[string]string{"a": "1", "b": "2"}
	whole := `{"a":"1","b":"2"}`
	damage := map[string]string{"garbage": "\x00\xff{{", "zeros": strings.Repeat("\x00", 20), "two values": whole +
		whole, "null": "null", "another kind": "[1]", "blanks": "  \n"}
	for i := range whole {
		damage[fmt.Sprintf("cut at %d", i)] = whole[:i]
	}
	for what, text := range damage {
		file := filepath.Join(t.TempDir(), "state")
		write(t, file, first)
		write(t, file, second)
		put(t, file, text)
		v, err := Read[map[string]string](file, nil)
		var d *Damaged
		if !errors.As(err, &d) || d.Path != file || !d.Previous || !maps.Equal(v, first) {
			t.Errorf("%s: %v, %v", what, v, err)
		}
		if v, err := Read[map[string]string](file, nil); err != nil || !maps.Equal(v, first) {
			t.Errorf("%s: the next start: %v, %v", what, v, err)
		}
		write(t, file, second) // and it is mended
		if v, err := Read[map[string]string](file, nil); err != nil || !maps.Equal(v, second) {
			t.Errorf("%s: written again: %v, %v", what, v, err)
		}
		// Both are damaged: nothing, by name.
		put(t, file, text)
		put(t, file+previous, text)
		if v, err := Read[map[string]string](file, nil); !IsDamaged(err) || len(v) != 0 ||
			!strings.Contains(err.Error(), file) {
			t.Errorf("%s: both are damaged: %v, %v", what, v, err)
		}
	}
}

func write(t *testing.T, file string, v any) {
	t.Helper()
	if err := Write(file, v); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// No file is nothing, without error, also when there was one.
func TestNoFileIsNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "folder", "state")
	if v, err := Read[[]int](file, nil); err != nil || v != nil {
		t.Errorf("%v, %v", v, err)
	}
	write(t, file, []int{1})
	write(t, file, []int{1, 2})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if v, err := Read[[]int](file, nil); err != nil || v != nil {
		t.Errorf("somebody removed it: %v, %v", v, err)
	}
	if err := Remove(file); err != nil {
		t.Fatal(err)
	}
	if v, err := Read[[]int](file, nil); err != nil || v != nil {
		t.Errorf("removed: %v, %v", v, err)
	}
}

// What the check does not accept is damage.
func TestAValueIsChecked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	write(t, file, []int{1})
	write(t, file, []int{7})
	v, err := Read(file, func(v []int) error {
		if v[0] > 5 {
			return errors.New("too many")
		}
		return nil
	})
	if !IsDamaged(err) || len(v) != 1 || v[0] != 1 {
		t.Errorf("%v, %v", v, err)
	}
}

// On a full disk a write fails, and what was written before stays and is read.
func TestAFullDiskKeepsWhatWasWritten(t *testing.T) {
	dir := tmpfs(t, "size=64k")
	file := filepath.Join(dir, "state")
	write(t, file, []string{"kept"})
	put(t, filepath.Join(dir, "ballast"), strings.Repeat("x", 30<<10))
	big := []string{strings.Repeat("y", 60<<10)}
	if err := Write(file, big); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if v, err := Read[[]string](file, nil); err != nil || len(v) != 1 || v[0] != "kept" {
		t.Errorf("%v, %v", v, err)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	write(t, file, []string{"again"})
}

// A disk that cannot be written is read.
func TestAReadOnlyDiskIsRead(t *testing.T) {
	dir := tmpfs(t, "size=64k")
	file := filepath.Join(dir, "state")
	write(t, file, []string{"kept"})
	write(t, file, []string{"newer"})
	put(t, file, "{")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it cannot be set aside
		if v, err := Read[[]string](file, nil); !IsDamaged(err) || len(v) != 1 || v[0] != "kept" {
			t.Errorf("%v, %v", v, err)
		}
	}
	if err := Write(file, 1); !errors.Is(err, unix.EROFS) {
		t.Errorf("on a disk that cannot be written: %v", err)
	}
}

func tmpfs(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a mount needs root (CAP_SYS_ADMIN)")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
