package process

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sleeper starts a process that lives until it is killed, and a goroutine
// that waits for it.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	return cmd
}

func TestKillEndsTheRecordedProcess(t *testing.T) {
	cmd, dir := sleeper(t), t.TempDir()
	r, err := Identify("a", cmd.Process.Pid, cmd.Args)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Save(dir); err != nil {
		t.Fatal(err)
	}
	all, err := LoadAll(dir)
	if err != nil || len(all) != 1 || !all[0].Alive() {
		t.Fatalf("got %+v, %v", all, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := all[0].Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if r.Alive() {
		t.Error("still alive")
	}
	if err := r.Kill(ctx); err != nil {
		t.Errorf("killed twice: %v", err)
	}
}

// A record is of one process, not of a number.
func TestKillSparesAnotherProcessOfThatNumber(t *testing.T) {
	cmd := sleeper(t)
	r, err := Identify("a", cmd.Process.Pid, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []Record{
		{Name: "later", PID: r.PID, Boot: r.Boot, Start: r.Start + 1},
		{Name: "boot", PID: r.PID, Boot: "another", Start: r.Start},
	} {
		if err := other.Kill(t.Context()); err != nil {
			t.Errorf("%s: %v", other.Name, err)
		}
	}
	if !r.Alive() {
		t.Error("the process was killed for another's record")
	}
}

func TestBadRecordsAreNamed(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "{", "b": `{"pid":1,"start":5,"boot":"x"}`, "c": `{"pid":77}`} {
		if err := os.WriteFile(filepath.Join(dir, name+".json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all, err := LoadAll(dir)
	if len(all) != 0 || err == nil {
		t.Fatalf("got %+v, %v", all, err)
	}
	for _, want := range []string{"a.json", "b.json", "c.json"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if all, err := LoadAll(filepath.Join(dir, "none")); len(all) != 0 || err != nil {
		t.Errorf("no folder: got %+v, %v", all, err)
	}
}

func TestParseStat(t *testing.T) {
	const rest = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"
	for line, want := range map[string]uint64{
		"7 (sleep) S" + rest:      4242,
		"7 (a) b) (c S) S" + rest: 4242,
		"7 (sleep) Z" + rest:      0, // has ended
		"7 (sleep) S 1 2 3":       0,
		"":                        0,
		"7 (x) S" + strings.Replace(rest, "4242", "x", 1): 0,
	} {
		got, err := parseStat(line)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %d, %v, want %d", line, got, err, want)
		}
	}
}

func TestFindByProgram(t *testing.T) {
	cmd := sleeper(t)
	r, err := Identify("a", cmd.Process.Pid, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = WaitFor(ctx, "the process among those of its program", 10*time.Millisecond, func() error {
		all, err := Executing(r.Program())
		for _, found := range all {
			if found.PID == r.PID && found.Start == r.Start {
				return nil
			}
		}
		return errors.Join(errors.New("not found"), err)
	})
	if err != nil {
		t.Error(err)
	}
}

// supervised marks the test's own program, run again as a supervisor: one
// waits for every child of its process.
const supervised = "TEST_SUPERVISED_LOGS"

func TestMain(m *testing.M) {
	if logs := os.Getenv(supervised); logs != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		err := Supervise(context.Background(), []Service{
			{Name: "short", Args: []string{"/bin/sh", "-c", "echo run; (sleep 300 &) ; sleep 0.01"}},
			{Name: "named", Program: "/bin/sh", Args: []string{"other-name", "-c", "echo $0; exec sleep 300"}},
		}, logs, log)
		if err != nil {
			log.Error("supervise", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSuperviseStartsAgainWhatEnded(t *testing.T) {
	logs := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), supervised+"="+logs)
	// A process namespace, so that nothing outlives the supervisor.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		t.Skip("process namespaces need root (CAP_SYS_ADMIN)")
	} else if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := WaitFor(ctx, "three runs", 20*time.Millisecond, func() error {
		text, err := os.ReadFile(filepath.Join(logs, "short.log"))
		if err == nil && strings.Count(string(text), "run\n") < 3 {
			err = errors.New("too few")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(logs, "named.log")); err != nil || string(text) != "other-name\n" {
		t.Errorf("argv[0] of the named service: %q, %v", text, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}
