package child

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A child keeps the agent's user: without a capability it still passes SO_PEERCRED for root, and may signal the agent.
// Landlock does not cover connect(2) to a path. So a seccomp filter refuses, with EPERM, to make unix sockets, to
// signal other processes, and what only helps to attack the kernel. Sockets that the agent passes are not affected.

// Offsets in struct seccomp_data (linux/seccomp.h). Arguments are 64 bits, little-endian on the supported platforms.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16
)

// x32 marks system calls of the x32 ABI of amd64.
const x32 = 0x40000000

// refusedAlways are system calls that no child needs. IORING_OP_SOCKET would make sockets past this filter.
var refusedAlways = []uint32{unix.SYS_IO_URING_SETUP, unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO,
	unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_PIDFD_GETFD, unix.SYS_PTRACE,
	unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_MOUNT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_KEYCTL, unix.SYS_ADD_KEY,
	unix.SYS_REQUEST_KEY}

// arch is the native AUDIT_ARCH.
func arch() (uint32, error) {
	switch runtime.GOARCH {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64, nil
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, nil
	}
	return 0, fmt.Errorf("seccomp: %s is not supported; amd64 and arm64 are", runtime.GOARCH)
}

// filter is the program for a process of that id.
func filter(arch uint32, pid int) []bpf.Instruction {
	const allow, refuse = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	// clone3(2) has its flags in memory, which a filter cannot read. C libraries go on with clone(2).
	const absent = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arch, SkipTrue: 1},
		bpf.RetConstant{Val: refuse},
		bpf.LoadAbsolute{Off: dataNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1},
		bpf.RetConstant{Val: refuse},
	}
	on := func(number uint32, then ...bpf.Instruction) {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpEqual, Val: number, SkipFalse: uint8(len(then))})
		out = append(out, then...)
	}
	for _, n := range refusedAlways {
		on(n, bpf.RetConstant{Val: refuse})
	}
	on(unix.SYS_CLONE3, bpf.RetConstant{Val: absent})
	arg0 := bpf.LoadAbsolute{Off: dataArg0, Size: 4}
	for _, n := range []uint32{unix.SYS_SOCKET, unix.SYS_SOCKETPAIR} {
		on(n, arg0, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_UNIX, SkipFalse: 1}, bpf.RetConstant{Val: refuse},
			bpf.RetConstant{Val: allow})
	}
	// Go's runtime signals its own threads.
	for _, n := range []uint32{unix.SYS_KILL, unix.SYS_TGKILL} {
		on(n, arg0, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(pid), SkipTrue: 1}, bpf.RetConstant{Val: refuse},
			bpf.RetConstant{Val: allow})
	}
	// A user namespace has all capabilities of its own.
	on(unix.SYS_CLONE, arg0, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.CLONE_NEWUSER, SkipFalse: 1},
		bpf.RetConstant{Val: refuse}, bpf.RetConstant{Val: allow})
	return append(out, bpf.RetConstant{Val: allow})
}

// lockCalls filters the system calls of this thread and its later programs. no_new_privs must be set.
func lockCalls() error {
	native, err := arch()
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(filter(native, os.Getpid()))
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	var list []unix.SockFilter
	for _, r := range raw {
		list = append(list, unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K})
	}
	list = slices.Clip(list)
	program := &unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0,
		uintptr(unsafe.Pointer(program))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}

// callsLocked says whether this thread cannot make unix sockets, or why that is not known.
func callsLocked() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		return nil
	case err != nil:
		return fmt.Errorf("make a unix socket: %w, want %w", err, unix.EPERM)
	}
	return errors.Join(errors.New("this process can make unix sockets"), unix.Close(fd))
}
