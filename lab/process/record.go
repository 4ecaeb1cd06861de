// Package process starts programs that outlive the command that started them, records each, and ends exactly those
// again: a record holds the start time, so a process that later gets the same number is never touched.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/await"
)

// Record identifies one process permanently.
type Record struct {
	Name  string   `json:"name"`
	PID   int      `json:"pid"`
	Boot  string   `json:"boot"`  // the boot that PID and Start belong to
	Start uint64   `json:"start"` // clock ticks since boot, proc(5) field 22
	Args  []string `json:"args"`
}

// Identify returns the record of a running process.
func Identify(name string, pid int, args []string) (Record, error) {
	start, err := startTime(pid)
	if err != nil {
		return Record{}, fmt.Errorf("process %s: %w", name, err)
	}
	return Record{Name: name, PID: pid, Boot: bootID(), Start: start, Args: args}, nil
}

// Alive reports whether the process still runs. A zombie does not.
func (r Record) Alive() bool {
	if r.Boot != bootID() {
		return false
	}
	start, err := startTime(r.PID)
	return err == nil && start == r.Start
}

// Kill ends the process and returns when it has ended. A missing process is not an error.
func (r Record) Kill(ctx context.Context) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %s (%d): %w", r.Name, r.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor refers to one process; the start time, checked now, proves that it is the recorded one.
	if !r.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %s (%d): %w", r.Name, r.PID, err)
	}
	for r.Alive() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("process %s (%d) does not end: %w", r.Name, r.PID, err)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 200); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("process %s (%d): %w", r.Name, r.PID, err)
		}
	}
	return nil
}

// Save writes the record into dir, under its name.
func (r Record) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("process %s: %w", r.Name, err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("process %s: %w", r.Name, err)
	}
	// A record is written atomically.
	file := filepath.Join(dir, r.Name+".json")
	if err := os.WriteFile(file+".part", data, 0o644); err != nil {
		return fmt.Errorf("process %s: %w", r.Name, err)
	}
	if err := os.Rename(file+".part", file); err != nil {
		return fmt.Errorf("process %s: %w", r.Name, err)
	}
	return nil
}

// Load reads the record of that name.
func Load(dir, name string) (Record, error) {
	var r Record
	file := filepath.Join(dir, name+".json")
	data, err := os.ReadFile(file)
	if err != nil {
		return r, fmt.Errorf("process %s: %w", name, err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("process: %s: %w", file, err)
	}
	if r.PID <= 1 || r.Start == 0 || r.Boot == "" {
		return r, fmt.Errorf("process: %s: pid, boot or start is missing", file)
	}
	return r, nil
}

// LoadAll reads every record in dir; none if the folder does not exist.
func LoadAll(dir string) ([]Record, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	var all []Record
	var errs []error
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok {
			continue
		}
		r, err := Load(dir, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, r)
	}
	return all, errors.Join(errs...)
}

// startTime reads field 22 of /proc/PID/stat. A zombie counts as ended.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(data))
}

func parseStat(line string) (uint64, error) {
	// The second field, the program's name, may contain spaces and parentheses.
	fields := strings.Fields(line[strings.LastIndex(line, ")")+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("stat: %q has %d fields", line, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// InNamespace returns the processes whose network namespace is the given file, such as one in /run/netns.
func InNamespace(file string) ([]Record, error) {
	var want unix.Stat_t
	if err := unix.Stat(file, &want); err != nil {
		return nil, fmt.Errorf("process: %s: %w", file, err)
	}
	return scan("in "+filepath.Base(file), func(pid int) bool {
		var have unix.Stat_t
		err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &have)
		return err == nil && have.Ino == want.Ino && have.Dev == want.Dev
	})
}

// Executing returns the processes that run the given program file.
func Executing(file string) ([]Record, error) {
	return scan("runs "+file, func(pid int) bool { return Record{PID: pid}.Program() == file })
}

// scan returns the processes that match, except this one.
func scan(name string, match func(pid int) bool) ([]Record, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	var found []Record
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() || !match(pid) {
			continue
		}
		if r, err := Identify(name, pid, nil); err == nil { // otherwise it has just ended
			found = append(found, r)
		}
	}
	return found, nil
}

// Program returns the file that a process runs, "" if unknown.
func (r Record) Program() string {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.PID))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(target, " (deleted)")
}

// WaitFor calls check until it returns nil, at least every interval, and
// returns its last error when the context ends.
func WaitFor(ctx context.Context, what string, interval time.Duration, check func() error) error {
	if err := await.Success(ctx, interval, check); err != nil {
		return fmt.Errorf("waited for %s: %w", what, err)
	}
	return nil
}
