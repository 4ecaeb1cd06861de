package child

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// As the child, this program gives up its rights and says what it can still do.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "alone" {
		if err := Confine(BindService); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		c, err := Parent()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(c, reach(os.Args[2], os.Args[3]))
		os.Exit(0)
	}
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

// reach says by which ways a child reaches other processes, and what it needs that does not work.
func reach(path, agent string) string {
	var found []string
	add := func(what string, err error) {
		if err == nil {
			found = append(found, what)
		}
	}
	for _, name := range []string{path, "@" + path} {
		c, err := net.Dial("unix", name)
		add("connect "+name, err)
		if err == nil {
			c.Close()
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if add("socketpair", err); err == nil { // of datagrams: it can be connected elsewhere
		unix.Close(pair[0])
		unix.Close(pair[1])
	}
	pid, err := strconv.Atoi(agent)
	if err != nil {
		return err.Error()
	}
	add("kill", unix.Kill(pid, 0))
	add("tgkill", unix.Tgkill(pid, pid, 0))
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		add("pidfd_send_signal", unix.PidfdSendSignal(fd, 0, nil, 0))
		unix.Close(fd)
	}
	add("unshare", unix.Unshare(unix.CLONE_NEWUSER))
	if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); errno != unix.EPERM {
		found = append(found, "io_uring_setup")
	}
	// What it needs.
	if c, err := net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		found = append(found, "no udp")
	} else {
		c.Close()
	}
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
		found = append(found, "no tcp")
	} else {
		l.Close()
	}
	if unix.Kill(os.Getpid(), 0) != nil {
		found = append(found, "no signal to itself")
	}
	if f, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE); err != nil {
		found = append(found, "no netlink")
	} else {
		unix.Close(f)
	}
	return strings.Join(found, "; ")
}

// The child is root, which the sockets between processes admit: the CNI socket, the feeds with keys of certificates,
// the devices of WireGuard. A captured one must not reach them, nor the agent by signals.
func TestTheChildReachesNoOtherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, name := range []string{path, "@" + path} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	p, err := Start(64<<20, nil, "alone", path, strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	line, err := bufio.NewReader(p.Conn).ReadString('\n')
	if err != nil || line != "\n" {
		t.Errorf("a child without rights can, or cannot: %q, %v", line, err)
	}
}

// The filter's decisions, for system calls that a test cannot make.
func TestTheFilterOfSystemCalls(t *testing.T) {
	const native, pid = unix.AUDIT_ARCH_X86_64, 42
	vm, err := bpf.NewVM(filter(native, pid))
	if err != nil {
		t.Fatal(err)
	}
	const allow, refuse = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | int(unix.EPERM)
	for _, tc := range []struct {
		name               string
		arch, number, arg0 uint32
		want               int
	}{
		{"read", native, unix.SYS_READ, unix.AF_UNIX, allow},
		{"unix socket", native, unix.SYS_SOCKET, unix.AF_UNIX, refuse},
		{"inet socket", native, unix.SYS_SOCKET, unix.AF_INET, allow},
		{"i386 call", unix.AUDIT_ARCH_I386, unix.SYS_READ, 0, refuse},
		{"x32 socket", native, unix.SYS_SOCKET | x32, unix.AF_UNIX, refuse},
		{"own thread", native, unix.SYS_TGKILL, pid, allow},
		{"other process", native, unix.SYS_TGKILL, pid + 1, refuse},
		{"all processes", native, unix.SYS_KILL, ^uint32(0), refuse},
		{"own group", native, unix.SYS_KILL, 0, refuse},
		{"thread", native, unix.SYS_CLONE, unix.CLONE_VM | unix.CLONE_THREAD, allow},
		{"user namespace", native, unix.SYS_CLONE, unix.CLONE_NEWUSER, refuse},
		{"clone3", native, unix.SYS_CLONE3, 0, unix.SECCOMP_RET_ERRNO | int(unix.ENOSYS)},
		{"io_uring", native, unix.SYS_IO_URING_SETUP, 0, refuse},
	} {
		var data []byte // the library's machine loads big-endian words
		data = binary.BigEndian.AppendUint32(data, tc.number)
		data = binary.BigEndian.AppendUint32(data, tc.arch)
		data = binary.BigEndian.AppendUint64(data, 0)
		data = binary.BigEndian.AppendUint32(data, tc.arg0)
		if got, err := vm.Run(data); err != nil || got != tc.want {
			t.Errorf("%s: %#x, %v; want %#x", tc.name, got, err, tc.want)
		}
	}
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
