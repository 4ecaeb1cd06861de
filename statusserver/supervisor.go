package statusserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
)

// Supervisor keeps the process running that serves. Its fields are not changed after Run.
type Supervisor struct {
	// Args start this program as that process.
	Args []string
	// Ports are the listeners.
	Ports []Port
	// Listen opens one; nil for TCP at its name. A port that another program has is tried again every second.
	Listen func(Port) (net.Listener, error)
	// Render makes the answer for a page. It must not wait for anything.
	Render func(Page) Answer
	// Say is told what is wrong with a port, nil when that is over.
	Say func(port string, err error)
	Log *slog.Logger
}

// retryEvery is the time between two tries to open a port.
const retryEvery = time.Second

// Run keeps the process running until the context ends, and ends it then.
func (s *Supervisor) Run(ctx context.Context) error {
	_ = child.Keep(ctx, s.once, func(err error) {
		if ctx.Err() == nil {
			s.Log.Warn("the status-server process ended; it is restarted", "err", err)
		}
	})
	return ctx.Err()
}

// once runs one process to its end.
func (s *Supervisor) once(ctx context.Context) error {
	p, err := child.Start(Memory, s.Args...)
	if err != nil {
		return err
	}
	asks, failed, stop := make(chan Page), make(chan error, 1), make(chan struct{})
	defer close(stop)
	go func() { failed <- receive(p.Conn, asks, stop) }()
	err = s.loop(ctx, p, asks, failed)
	if ctx.Err() == nil {
		p.Kill()
		return err
	}
	return p.EndSoon()
}

func receive(conn *net.UnixConn, asks chan<- Page, stop <-chan struct{}) error {
	for {
		var a ask
		if _, err := frame.ReceiveWithin(conn, &a, frame.Limits{Bytes: maxAsk}); err != nil {
			return err
		}
		select {
		case asks <- a.Page:
		case <-stop:
			return nil
		}
	}
}

func (s *Supervisor) loop(ctx context.Context, p *child.Process, asks <-chan Page, failed <-chan error) error {
	open := map[string]bool{}
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	if err := s.pass(p.Conn, open); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.Done():
			return errors.New("exited without an error")
		case err := <-failed:
			return err
		case <-retry.C:
			if err := s.pass(p.Conn, open); err != nil {
				return err
			}
		case name := <-asks:
			a, err := s.render(name)
			if err != nil {
				return err
			}
			if err := send(p.Conn, order{Page: name, Answer: &a}, nil); err != nil {
				return err
			}
			time.Sleep(askEvery) // what a captured process could make the agent do is bounded
		}
	}
}

func (s *Supervisor) render(name Page) (Answer, error) {
	switch name {
	case Healthz, Livez, Metrics, ProxyMode, Alive:
		return s.Render(name), nil
	}
	return Answer{}, fmt.Errorf("request for an unknown page")
}

// pass opens the ports that are not, and passes them on. This process keeps none open: they close with the other.
func (s *Supervisor) pass(conn *net.UnixConn, open map[string]bool) error {
	for _, port := range s.Ports {
		if open[port.Name] {
			continue
		}
		l, err := s.listen(port)
		s.Say(port.Name, err)
		if err != nil {
			continue
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err == nil {
			err = send(conn, order{Port: &port}, []*os.File{f})
			_ = f.Close()
		}
		if err := errors.Join(err, l.Close()); err != nil {
			return fmt.Errorf("port %s: %w", port.Name, err)
		}
		open[port.Name] = true
	}
	return nil
}

func (s *Supervisor) listen(port Port) (net.Listener, error) {
	if s.Listen != nil {
		return s.Listen(port)
	}
	var lc net.ListenConfig
	return lc.Listen(context.Background(), "tcp", port.Name)
}

// send bounds how long a hung process may hold us up: its socket's buffer may be full.
func send(conn *net.UnixConn, o order, files []*os.File) error {
	if err := conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	return frame.Send(conn, o, files)
}
