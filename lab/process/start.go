package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"wayleave.dev/lab/fabric"
)

// Program is a program to be started in the background.
type Program struct {
	Name      string // of the record and the log
	Args      []string
	Env       []string // added to a small fixed environment
	Namespace string   // network namespace; the caller's if empty
	Clone     uintptr  // further namespaces of its own: CLONE_NEW…
}

// Environment is that of background programs: nothing of the caller's, so that a lab does not depend on who started it.
func Environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
}

// Start starts a program in a session of its own, which the terminal's Ctrl-C does not reach, and records it.
func Start(p Program, records, logs string) (Record, error) {
	log, err := openLog(logs, p.Name)
	if err != nil {
		return Record{}, err
	}
	defer log.Close()
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Env = append(Environment(), p.Env...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: p.Clone}
	start := cmd.Start
	if p.Namespace != "" {
		start = func() error { return fabric.Do(p.Namespace, cmd.Start) }
	}
	if err := start(); err != nil {
		return Record{}, fmt.Errorf("process %s: %w", p.Name, err)
	}
	// While this command runs it is the parent and must wait for the child.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r, err := Identify(p.Name, cmd.Process.Pid, p.Args)
	if err != nil {
		return Record{}, fmt.Errorf("process %s ended at once (%v); see %s: %w", p.Name, <-ended, log.Name(), err)
	}
	return r, r.Save(records)
}

func openLog(dir, name string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("process %s: %w", name, err)
	}
	file, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("process %s: %w", name, err)
	}
	return file, nil
}
