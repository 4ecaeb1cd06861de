// Package build builds the programs that the lab runs: from Go modules with pinned versions, and from Debian's
// packages. Every artifact is cached under a hash of its inputs, so the cache is never stale, and a program in use is
// never replaced.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"wayleave.dev/lab/progress"
)

// unusedAfter is how long an unused artifact is kept.
const unusedAfter = 14 * 24 * time.Hour

// Cache builds and stores artifacts. One process at a time may build; Lock ensures that.
type Cache struct {
	Dir      string
	Progress *progress.Printer
	// Log receives the output of called programs.
	Log io.Writer
}

// Lock waits until no other process builds artifacts in the cache.
func (c *Cache) Lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(c.Dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	for told := false; ; told = true {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			file.Close()
			return nil, fmt.Errorf("cache: lock %s: %w", file.Name(), err)
		}
		if !told {
			c.Progress.Printf("another lab command is building; waiting for it")
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// Make returns the folder of an artifact with the given inputs. If it is not cached, make is called with an empty
// folder. what is printed meanwhile.
func (c *Cache) Make(name, what string, inputs []string, make func(dir string) error) (string, error) {
	sum := sha256.New()
	for _, input := range append([]string{name, runtime.GOARCH}, inputs...) {
		fmt.Fprintf(sum, "%d:%s", len(input), input)
	}
	dir := filepath.Join(c.Dir, name+"-"+hex.EncodeToString(sum.Sum(nil))[:16])
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err == nil {
		return dir, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cache: %w", err)
	}
	temporary := dir + ".part"
	if err := os.RemoveAll(temporary); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	if err := c.Progress.Step("build "+what, func() error { return make(temporary) }); err != nil {
		return "", errors.Join(fmt.Errorf("build %s: %w", what, err), os.RemoveAll(temporary))
	}
	if err := os.Rename(temporary, dir); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	// Unpacking may have set the folder's date to an old one.
	now = time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	return dir, c.prune(name, now.Add(-unusedAfter))
}

// prune removes artifacts of that name last used before the given time.
func (c *Cache) prune(name string, before time.Time) error {
	old, err := filepath.Glob(filepath.Join(c.Dir, name+"-*"))
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	for _, dir := range old {
		// Names of other artifacts may begin with this one's.
		if len(filepath.Base(dir)) != len(name)+17 {
			continue
		}
		if info, err := os.Stat(dir); err == nil && info.ModTime().Before(before) {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("cache: %w", err)
			}
		}
	}
	return nil
}

// run runs a program in dir. Its output goes to the log; if it fails, the error contains the end of the output.
func (c *Cache) run(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	// If interrupted, go and apt end their children; if killed, they leave them behind.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	tail := &tail{}
	log := c.Log
	if log == nil {
		log = io.Discard
	}
	cmd.Stdout = io.MultiWriter(log, tail)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail)
	}
	return nil
}

// tail keeps the last kilobytes of what is written to it.
type tail struct{ data []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 4096
	t.data = append(t.data, p...)
	if len(t.data) > most {
		t.data = t.data[len(t.data)-most:]
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.data)) }
