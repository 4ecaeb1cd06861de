package sysctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A memory that is damaged, or that the disk does not take, is told of and stops nothing.
func TestADamagedMemoryStopsNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ip_forward")
	state := filepath.Join(dir, "state")
	for _, text := range []string{"", "{", `{"ip_forward":`, `{"../../x":"1"}`, "null", "\x00\x00", "[]"} {
		var told error
		s := Set{Root: dir, State: state, Tell: func(_ string, err error) { told = errors.Join(told, err) }}
		for name, text := range map[string]string{file: "0\n", state: text} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Ensure("ip_forward", "1"); err != nil || told == nil {
			t.Errorf("%q: %v, told %v", text, err, told)
		}
		if err := s.Restore(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if raw, _ := os.ReadFile(file); string(raw) != "0" {
			t.Errorf("%q: after restore it is %q", text, raw)
		}
	}
	var told error
	s := Set{Root: dir, State: "/proc/no-such-folder/state", Tell: func(_ string, err error) { told = err }}
	if err := s.Ensure("ip_forward", "1"); err != nil || told == nil {
		t.Errorf("no disk: %v, told %v", err, told)
	}
}

func TestValuesGoBackToWhatTheyWere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ip_forward")
	if err := os.WriteFile(file, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Set{Root: dir, State: filepath.Join(dir, "state")}
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

// Goroutines that share a file lose none of each other's values.
func TestAllValuesAreRemembered(t *testing.T) {
	dir := t.TempDir()
	s := Set{Root: dir, State: filepath.Join(dir, "state")}
	var wg sync.WaitGroup
	for i := range 20 {
		name := fmt.Sprintf("p%d", i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("0"), 0o600); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := s.Ensure(name, "1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := len(s.load()); got != 20 {
		t.Errorf("%d values of 20 are remembered", got)
	}
}

func TestAHigherValueStays(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "nf_conntrack_max")
	s := Set{Root: dir, State: filepath.Join(dir, "state")}
	for have, want := range map[string]string{"262144\n": "262144\n", "131072\n": "131072\n", "65536\n": "131072"} {
		if err := os.WriteFile(file, []byte(have), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Raise("nf_conntrack_max", 131072); err != nil {
			t.Fatal(err)
		}
		if raw, _ := os.ReadFile(file); string(raw) != want {
			t.Errorf("%q became %q, want %q", have, raw, want)
		}
	}
	if err := s.Raise("none", 1); err == nil {
		t.Error("a missing parameter is no error")
	}
}
