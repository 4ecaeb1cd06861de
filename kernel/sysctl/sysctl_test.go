package sysctl

import (
	"os"
	"path/filepath"
	"testing"
)

func TestValuesGoBackToWhatTheyWere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ip_forward")
	if err := os.WriteFile(file, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Set{dir, filepath.Join(dir, "state")}
	for range 2 { // a second time must not remember our own value
		if err := s.Ensure("ip_forward", "1"); err != nil {
			t.Fatal(err)
		}
	}
	if raw, _ := os.ReadFile(file); string(raw) != "1" {
		t.Errorf("value is %q", raw)
	}
	if err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	if raw, _ := os.ReadFile(file); string(raw) != "0" {
		t.Errorf("after restore it is %q", raw)
	}
	if _, err := os.Stat(s.State); err == nil {
		t.Error("the memory is still there")
	}
	if err := s.Ensure("no_such", "1"); err == nil {
		t.Error("a missing parameter is no error")
	}
}
