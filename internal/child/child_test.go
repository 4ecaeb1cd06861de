package child

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// As the child, this program gives up its rights and says what it can still do.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "confined" {
		if err := Confine(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		c, err := Parent()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_, read := os.ReadFile(os.Args[2])
		write := os.WriteFile(os.Args[2]+".new", nil, 0o600)
		_, own := os.ReadFile("/proc/self/status")
		fmt.Fprintf(c, "read %v; write %v; own %v\n", errors.Is(read, unix.EACCES), errors.Is(write, unix.EACCES), own)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The child is the agent's user, and can read and write none of its files.
func TestTheChildHasNoFiles(t *testing.T) {
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0,
		unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 {
		t.Skipf("this kernel has no Landlock: %v", errno)
	}
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Start(64<<20, nil, "confined", file)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	line, err := bufio.NewReader(p.Conn).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "read true; write true; own <nil>" {
		t.Errorf("refused: %q, %v", line, err)
	}
}
