package execfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

const exitEnv = "WAYLEAVE_TEST_EXIT"

// As a child, this program ends at once.
func TestMain(m *testing.M) {
	if os.Getenv(exitEnv) != "" {
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func run(program string) error {
	cmd := exec.Command(program)
	cmd.Env = []string{exitEnv + "=1"}
	return cmd.Run()
}

// Programs are installed and executed while other goroutines start programs.
func TestAProgramCanBeExecutedWhileOthersStart(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = run("/proc/self/exe")
			}
		})
	}
	dir := t.TempDir()
	for i := range 100 {
		name := filepath.Join(dir, fmt.Sprintf("program%d", i%3))
		if err := Install(name, self, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := run(name); err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
	}
}

// While a file is open for writing, nothing forks: a named pipe keeps it open for as long as the
// test likes.
func TestNothingForksWhileAProgramIsWritten(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "program")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0) // a pipe takes 64 KiB, then the writer waits
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	written, started := make(chan error, 1), make(chan error, 1)
	go func() { written <- write(fifo, make([]byte, 1<<20), 0o700) }()
	testnet.Eventually(t, 30*time.Second, func() error {
		n, err := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ)
		if err == nil && n == 0 {
			err = errors.New("nothing was written yet")
		}
		return err
	})
	go func() { started <- run("/proc/self/exe") }()
	select {
	case err := <-started:
		t.Fatalf("a program ran while another was open for writing: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := io.CopyN(io.Discard, reader, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-written, <-started); err != nil {
		t.Error(err)
	}
}

func TestAProgramIsInstalledWhole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "folder", "program")
	for _, text := range []string{"first", "second"} {
		if err := Install(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(name)
		info, statErr := os.Stat(name)
		if err != nil || statErr != nil || string(raw) != text || info.Mode().Perm() != 0o755 {
			t.Errorf("%q %v %v, want %q", raw, err, info, text)
		}
	}
	if list, err := os.ReadDir(filepath.Dir(name)); err != nil || len(list) != 1 {
		t.Errorf("left: %v, %v", list, err)
	}
	// A folder is in the way of the name.
	if err := os.MkdirAll(filepath.Join(name+"2", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Install(name+"2", nil, 0o755); err == nil {
		t.Error("a folder was replaced")
	}
	if list, err := os.ReadDir(filepath.Dir(name)); err != nil || len(list) != 2 {
		t.Errorf("left: %v, %v", list, err)
	}
}
