package process

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// Service is a program that Supervise keeps running.
type Service struct {
	Name string   `json:"name"` // also of its log
	Args []string `json:"args"` // Args[0] is the program's path
	Env  []string `json:"env,omitempty"`
	// Program is the file to run if Args[0] is only a name.
	Program string `json:"program,omitempty"`
}

// restartAfter is how long a service that ended stays down.
const restartAfter = time.Second

// Supervise is the main function of the first process of a process namespace: it starts the services in order, restarts
// each when it ends, and reaps orphans. When it ends, the kernel kills all processes in the namespace. It returns when
// the context ends, or on SIGTERM.
func Supervise(ctx context.Context, services []Service, logs string, log *slog.Logger) error {
	s := &supervisor{logs: logs, log: log, running: map[int]Service{}}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM)
	defer signal.Stop(signals)
	restart := make(chan Service, len(services))
	for _, service := range services {
		if err := s.start(service); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case service := <-restart:
			if err := s.start(service); err != nil {
				return err
			}
		case sig := <-signals:
			if sig == syscall.SIGTERM {
				return nil
			}
			for _, ended := range s.reap() {
				time.AfterFunc(restartAfter, func() { restart <- ended })
			}
		}
	}
}

// supervisor belongs to one goroutine: only reap waits for children.
type supervisor struct {
	logs    string
	log     *slog.Logger
	running map[int]Service
}

func (s *supervisor) start(service Service) error {
	file, err := openLog(s.logs, service.Name)
	if err != nil {
		return err
	}
	defer file.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("service %s: %w", service.Name, err)
	}
	defer null.Close()
	program := service.Program
	if program == "" {
		program = service.Args[0]
	}
	if !filepath.IsAbs(program) {
		return fmt.Errorf("service %s: %q is not an absolute path", service.Name, program)
	}
	p, err := os.StartProcess(program, service.Args, &os.ProcAttr{
		Dir: "/", Env: append(Environment(), service.Env...),
		Files: []*os.File{null, file, file},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("service %s: %w", service.Name, err)
	}
	s.running[p.Pid] = service
	s.log.Info("started", "service", service.Name, "pid", p.Pid)
	return p.Release()
}

// reap collects every child that ended and returns the services among them.
func (s *supervisor) reap() []Service {
	var ended []Service
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 || err != nil {
			return ended
		}
		service, ok := s.running[pid]
		if !ok {
			continue
		}
		delete(s.running, pid)
		s.log.Warn("ended", "service", service.Name, "pid", pid, "status", int(status))
		ended = append(ended, service)
	}
}
