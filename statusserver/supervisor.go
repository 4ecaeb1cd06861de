package statusserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/logging"
)

// Supervisor keeps the process running that serves. Its fields are not changed after Run.
type Supervisor struct {
	// Args start this program as that process.
	Args []string
	// Ports returns the listeners. It is called every second, because addresses of the node change; a port that it no
	// longer returns stays open until the process ends.
	Ports func() []Port
	// Sources are the processes whose metrics the page AllMetrics has, and ListenSource opens the socket of one.
	Sources      []Source
	ListenSource func(path string) (*net.UnixListener, error)
	// Review decides about tokens; nil allows none.
	Review Reviewer
	// Version is Wayleave's.
	Version string
	// Listen opens one; nil for TCP at its name. A port that another program has is tried again every second.
	Listen func(Port) (net.Listener, error)
	// Render makes the answer for a page. It must not wait for anything.
	Render func(Page) Answer
	// Say is told what is wrong with a port, nil when that is over.
	Say func(port string, err error)
	Log *slog.Logger
	// Logs are the settings that the log of the process follows; nil for the defaults.
	Logs *logging.Log

	connected chan connection
}

// connection is one of a source, which is unread. Its receiver closes the file.
type connection struct {
	from string
	file *os.File
}

// retryEvery is the time between two tries to open a port.
const retryEvery = time.Second

// Run keeps the process running until the context ends, and ends it then.
func (s *Supervisor) Run(ctx context.Context) error {
	s.connected = make(chan connection)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, source := range s.Sources {
		wg.Go(func() { s.accept(ctx, source) })
	}
	_ = child.Keep(ctx, s.once, func(err error) {
		if ctx.Err() == nil {
			s.Log.Warn("the status-server process ended; it is restarted", "err", err)
		}
	})
	return ctx.Err()
}

// once runs one process to its end.
func (s *Supervisor) once(ctx context.Context) error {
	p, err := child.Start(Memory, s.Logs, s.Args...)
	if err != nil {
		return err
	}
	asks, failed, stop := make(chan ask), make(chan error, 1), make(chan struct{})
	defer close(stop)
	go func() { failed <- receive(p.Conn, asks, stop) }()
	err = send(p.Conn, order{Version: s.Version, Sources: append([]Source{}, s.Sources...)}, nil)
	if err == nil {
		err = s.loop(ctx, p, asks, failed)
	}
	if ctx.Err() == nil {
		p.Kill()
		return err
	}
	return p.EndSoon()
}

func receive(conn *net.UnixConn, asks chan<- ask, stop <-chan struct{}) error {
	for {
		var a ask
		if _, err := frame.ReceiveWithin(conn, &a, frame.Limits{Bytes: maxAsk}); err != nil {
			return err
		}
		select {
		case asks <- a:
		case <-stop:
			return nil
		}
	}
}

func (s *Supervisor) loop(ctx context.Context, p *child.Process, asks <-chan ask, failed <-chan error) error {
	open := map[string]bool{}
	reviews := newReviews(ctx, s.Review)
	defer reviews.end()
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
		case c := <-s.connected:
			if err := send(p.Conn, order{From: c.from}, []*os.File{c.file}); err != nil {
				return errors.Join(err, c.file.Close())
			}
			_ = c.file.Close() // the process has a copy
		case r := <-reviews.done:
			if err := send(p.Conn, order{Review: &r}, nil); err != nil {
				return err
			}
		case a := <-asks:
			if err := s.answer(p.Conn, a, reviews); err != nil {
				return err
			}
			time.Sleep(askEvery) // what a captured process could make the agent do is bounded
		}
	}
}

// answer does what the process asks for.
func (s *Supervisor) answer(conn *net.UnixConn, a ask, reviews *reviews) error {
	if a.Review != nil {
		reviews.begin(*a.Review)
		return nil
	}
	page, err := s.render(a.Page)
	if err != nil {
		return err
	}
	return send(conn, order{Page: a.Page, Answer: &page}, nil)
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
	for _, port := range s.Ports() {
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
