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
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"wayleave.dev/internal/admission"
	"wayleave.dev/internal/child"
	"wayleave.dev/internal/frame"
)

// Main is the whole of the process that a Supervisor starts.
func Main() error { return child.Main("status-server", Run) }

// Run serves on the ports that the other end of the socket passes, until that is closed.
func Run(conn *net.UnixConn, log *slog.Logger) error {
	p := newProcess(conn, log)
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
		s, err := p.obey(o, files)
		if err != nil {
			return err
		}
		if s != nil {
			servers = append(servers, s)
		}
	}
}

// obey does what the agent says. The server is that of a port.
func (p *process) obey(o order, files []*os.File) (*http.Server, error) {
	if o.Sources != nil {
		p.metrics.expect(o.Version, o.Sources)
	}
	if o.Answer != nil {
		p.page(o.Page).set(*o.Answer)
	}
	if o.Review != nil {
		p.reviewed(*o.Review)
	}
	if len(files) != 1 {
		closeAll(files)
		return nil, nil
	}
	switch {
	case o.Port != nil:
		return p.open(*o.Port, files[0])
	case o.From != "":
		return nil, p.metrics.connect(o.From, files[0])
	}
	closeAll(files)
	return nil, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}

// process is the running server.
type process struct {
	conn    *net.UnixConn
	log     *slog.Logger
	metrics *metrics
	guard   *guard

	sending sync.Mutex // one frame at a time
	mu      sync.Mutex
	pages   map[Page]*page
	reviews map[uint64]chan int
	last    uint64 // review
}

func newProcess(conn *net.UnixConn, log *slog.Logger) *process {
	p := &process{conn: conn, log: log, metrics: newMetrics(), pages: map[Page]*page{}, reviews: map[uint64]chan int{}}
	p.guard = newGuard(p.review)
	return p
}

// review has the agent ask whether a token is allowed.
func (p *process) review(ctx context.Context, token string) int {
	result := make(chan int, 1)
	p.mu.Lock()
	p.last++
	id := p.last
	p.reviews[id] = result
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.reviews, id)
		p.mu.Unlock()
	}()
	if err := p.ask(ask{Review: &review{ID: id, Token: token}}); err != nil {
		return http.StatusServiceUnavailable
	}
	select {
	case status := <-result:
		return status
	case <-ctx.Done():
		return http.StatusServiceUnavailable
	}
}

// reviewed takes the result of a review.
func (p *process) reviewed(r review) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if result := p.reviews[r.ID]; result != nil {
		result <- r.Status
		delete(p.reviews, r.ID)
	}
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
		mux.HandleFunc("GET "+path, p.handler(port, name))
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout,
		WriteTimeout:   writeTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0)}
	// One request for each connection: an open connection keeps a place.
	s.SetKeepAlivesEnabled(false)
	// HTTP/1 only: a connection then carries one request.
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	var bounded net.Listener = admission.New(l, port.limits())
	if port.Token {
		if bounded, err = certified(bounded); err != nil {
			return nil, fmt.Errorf("port %s: certificate: %w", port.Name, errors.Join(err, l.Close()))
		}
	}
	go func() {
		if err := s.Serve(bounded); err != nil && !errors.Is(err, http.ErrServerClosed) {
			p.log.Warn("port", "port", port.Name, "err", err)
		}
	}()
	return s, nil
}

// limits bound the connections of a port.
func (port Port) limits() admission.Limits {
	if !port.Token && port.Allowed == nil {
		return admission.Limits{Total: MaxConnections, PerSource: MaxPerSource}
	}
	l := admission.Limits{Total: MaxConnections, PerSource: MaxPerScraper}
	if port.Allowed != nil {
		l.Allowed = func(a netip.Addr) bool {
			return slices.ContainsFunc(port.Allowed, func(n netip.Prefix) bool { return n.Contains(a) })
		}
	}
	return l
}

// handler serves a page of a port.
func (p *process) handler(port Port, name Page) http.HandlerFunc {
	if name != AllMetrics {
		return func(w http.ResponseWriter, q *http.Request) { p.serve(w, q, name) }
	}
	return func(w http.ResponseWriter, q *http.Request) {
		status := http.StatusOK
		if port.Token {
			status = p.guard.check(q)
		}
		p.metrics.requests.WithLabelValues(strconv.Itoa(status)).Inc()
		if status != http.StatusOK {
			refuse(w, status)
			return
		}
		write(w, p.collect())
	}
}

// refuse says why a request for the metrics is not answered.
func refuse(w http.ResponseWriter, status int) {
	why := map[int]string{
		http.StatusUnauthorized:       "a valid bearer token is needed",
		http.StatusForbidden:          "the bearer may not get the nonResourceURL /metrics",
		http.StatusTooManyRequests:    "too many unknown tokens; try again in a second",
		http.StatusServiceUnavailable: "the API server did not say whether the token is valid",
	}
	w.Header().Set("Server", "wayleave")
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, why[status], status)
}

func (p *process) serve(w http.ResponseWriter, q *http.Request, name Page) {
	ctx, cancel := context.WithTimeout(q.Context(), answerTimeout)
	defer cancel()
	a, err := p.page(name).get(ctx, name.freshFor(), func() error { return p.ask(ask{Page: name}) })
	if err != nil {
		w.Header().Set("Server", "wayleave")
		http.Error(w, "the agent does not answer", http.StatusServiceUnavailable)
		return
	}
	write(w, a)
}

func write(w http.ResponseWriter, a Answer) {
	w.Header().Set("Server", "wayleave")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Type", a.ContentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)))
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client has gone, else
}

func (p *process) ask(a ask) error {
	p.sending.Lock()
	defer p.sending.Unlock()
	if err := p.conn.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	return frame.Send(p.conn, a, nil)
}

// page is an answer of the agent, and what waits for the next.
type page struct {
	mu      sync.Mutex
	answer  Answer
	at      time.Time
	waiting chan struct{} // closed with the next answer; nil: no request waits
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
