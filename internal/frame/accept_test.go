package frame

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

const withoutFiles = "WAYLEAVE_TEST_WITHOUT_FILES"

// A server whose process has no files left goes on when there are some again.
func TestAServerWaitsForFiles(t *testing.T) {
	if os.Getenv(withoutFiles) == "" { // the limit is the whole process's, so it is another one's
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, self, "-test.run=^TestAServerWaitsForFiles$", "-test.v")
		cmd.Env = append(os.Environ(), withoutFiles+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{}, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(t.Context(), l, func(context.Context, *net.UnixConn) error { served <- struct{}{}; return nil },
			nil)
	}()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}); err != nil {
		t.Fatal(err)
	}
	var ballast []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		ballast = append(ballast, f)
	}
	if len(ballast) == 0 {
		t.Fatal("there were no files to take")
	}
	ballast[0].Close() // for the client
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case err := <-ended:
		t.Fatalf("the server ended: %v", err)
	case <-served:
		t.Fatal("there was a file left")
	case <-time.After(4 * acceptPause):
	}
	for _, f := range ballast[1:] {
		f.Close()
	}
	testnet.Eventually(t, 10*time.Second, func() error {
		select {
		case <-served:
			return nil
		default:
			return errors.New("the client is not served")
		}
	})
}
