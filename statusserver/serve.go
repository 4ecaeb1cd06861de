package statusserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"wayleave.dev/internal/admission"
	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
)

// Main is the whole of the process that a Supervisor starts.
func Main(log *slog.Logger) error {
	return child.Main(func(conn *net.UnixConn) error { return Run(conn, log) })
}

// Run serves on the ports that the other end of the socket passes, until that is closed.
func Run(conn *net.UnixConn, log *slog.Logger) error {
	p := &process{conn: conn, log: log, pages: map[Page]*page{}}
	var servers []*http.Server
	defer func() {
		for _, s := range servers {
			_ = s.Close()
		}
	}()
	for {
		var o order
		files, err := frame.Receive(conn, &o)
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return nil // a killed agent leaves a socket that is reset
		}
		if err != nil {
			return err
		}
		for i, f := range files {
			if i > 0 || o.Port == nil {
				_ = f.Close()
				continue
			}
			s, err := p.open(*o.Port, f)
			if err != nil {
				return err
			}
			servers = append(servers, s)
		}
		if o.Answer != nil {
			p.page(o.Page).set(*o.Answer)
		}
	}
}

// process is the running server.
type process struct {
	conn *net.UnixConn
	log  *slog.Logger

	sending sync.Mutex // one frame at a time
	mu      sync.Mutex
	pages   map[Page]*page
}

func (p *process) page(name Page) *page {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pages[name] == nil {
		p.pages[name] = &page{}
	}
	return p.pages[name]
}

// open serves on a listener that was passed.
func (p *process) open(port Port, f *os.File) (*http.Server, error) {
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("port %s: %w", port.Name, err)
	}
	mux := http.NewServeMux()
	for path, name := range port.Pages {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, q *http.Request) { p.serve(w, q, name) })
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout,
		WriteTimeout:   writeTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0)}
	// One request for each connection: who keeps one open keeps a place.
	s.SetKeepAlivesEnabled(false)
	go func() {
		bounded := admission.New(l, admission.Limits{Total: MaxConnections, PerSource: MaxPerSource})
		if err := s.Serve(bounded); err != nil && !errors.Is(err, http.ErrServerClosed) {
			p.log.Warn("port", "port", port.Name, "err", err)
		}
	}()
	return s, nil
}

func (p *process) serve(w http.ResponseWriter, q *http.Request, name Page) {
	ctx, cancel := context.WithTimeout(q.Context(), answerTimeout)
	defer cancel()
	a, err := p.page(name).get(ctx, name.freshFor(), func() error { return p.ask(name) })
	w.Header().Set("Server", "wayleave")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err != nil {
		http.Error(w, "the agent does not answer", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", a.ContentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client has gone, else
}

func (p *process) ask(name Page) error {
	p.sending.Lock()
	defer p.sending.Unlock()
	if err := p.conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	return frame.Send(p.conn, ask{name}, nil)
}

// page is an answer of the agent, and what waits for the next.
type page struct {
	mu      sync.Mutex
	answer  Answer
	at      time.Time
	waiting chan struct{} // closed with the next answer; nil: nobody has asked
	asked   time.Time
}

func (p *page) set(a Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer, p.at = a, time.Now()
	if p.waiting != nil {
		close(p.waiting)
		p.waiting = nil
	}
}

// get gives the answer when it is fresh; else the first that wants it asks, and all wait for the same.
func (p *page) get(ctx context.Context, fresh time.Duration, ask func() error) (Answer, error) {
	p.mu.Lock()
	if !p.at.IsZero() && time.Since(p.at) < fresh {
		defer p.mu.Unlock()
		return p.answer, nil
	}
	first := p.waiting == nil || time.Since(p.asked) > answerTimeout
	if p.waiting == nil {
		p.waiting = make(chan struct{})
	}
	if first {
		p.asked = time.Now()
	}
	waiting := p.waiting
	p.mu.Unlock()
	if first {
		if err := ask(); err != nil {
			return Answer{}, err
		}
	}
	select {
	case <-waiting:
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answer, nil
}
