package testnet

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"testing"
)

// Main runs the tests, or the role that the first argument names: the binary of a test is also each process that the
// test starts.
func Main(m *testing.M, roles map[string]func(*slog.Logger) error) {
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())
		if err := roles[os.Args[1]](log); err != nil {
			log.Error("ended", "args", os.Args[1:], "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Self is the binary of the test in a role. The test sends lines of JSON to its standard input.
type Self struct {
	// Done is closed when Kill or Stop was called, and its output is read.
	Done <-chan struct{}

	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
}

// StartSelf starts the binary of the test in a namespace, with a role and its arguments. Its standard error is that of
// the test. read gets its standard output, and ends with that. It is killed at the end of the test.
func StartSelf(t testing.TB, ns *NS, read func(io.Reader), args ...string) *Self {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ns.Must(cmd.Start)
	done := make(chan struct{})
	go func() {
		defer close(done)
		read(out)
	}()
	s := &Self{Done: done, t: t, cmd: cmd, in: in}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill() // also one that the test has stopped
		<-done
		_ = cmd.Wait()
	})
	return s
}

// PID returns the id of the process.
func (s *Self) PID() int { return s.cmd.Process.Pid }

// Tell sends a value.
func (s *Self) Tell(v any) {
	s.t.Helper()
	if err := json.NewEncoder(s.in).Encode(v); err != nil {
		s.t.Fatalf("process %d: %v", s.PID(), err)
	}
}

// Kill ends the process by a signal, and waits for its end.
func (s *Self) Kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	s.wait()
}

// Stop closes the standard input, and waits until the process has ended.
func (s *Self) Stop() {
	_ = s.in.Close()
	s.wait()
}

func (s *Self) wait() {
	<-s.Done
	_ = s.cmd.Wait() // "signal: killed"
}

// Decode calls do with each JSON value of a reader, to its end.
func Decode[T any](r io.Reader, do func(T)) {
	for d := json.NewDecoder(r); ; {
		var v T
		if d.Decode(&v) != nil {
			return
		}
		do(v)
	}
}
