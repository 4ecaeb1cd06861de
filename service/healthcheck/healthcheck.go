// Package healthcheck serves spec.healthCheckNodePort: a load balancer asks each node whether it has endpoints of a
// Service with externalTrafficPolicy Local.
//
// The answers are kube-proxy's. Requests are not parsed: every client gets the same answer, because a process with
// capabilities must not parse bytes from outside.
package healthcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/admission"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	"wayleave.dev/service"
)

// Check is the health check of one Service.
type Check struct {
	Port uint16
	// Local is the number of ready endpoints on this node.
	Local int
}

// Plan returns the check of a Service for the named node. Reserved ports are not opened; the plan of the Service
// reports them.
func Plan(node string, reserved model.Reserved) func(model.Snapshot, model.Name) (Check, bool, []model.Problem) {
	return func(snap model.Snapshot, key model.Name) (Check, bool, []model.Problem) {
		svc, ok := snap.Service(key)
		if !ok || svc.HealthCheckPort == 0 || svc.OtherProxy || reserved.Port(snap, model.TCP,
			svc.HealthCheckPort) != "" {
			return Check{}, false, nil
		}
		return Check{svc.HealthCheckPort, service.Here(snap, svc, node)}, true, nil
	}
}

// Equal compares two.
func Equal(a, b Check) bool { return a == b }

// Bounds. Services of every tenant have ports here, so the bounds on connections apply to all ports together.
const (
	// MaxPorts is the maximum number of open ports: the size of the default node port range.
	MaxPorts = 2768
	// MaxConnections and MaxPerSource bound open connections over all ports: in total, and per IPv4 address or IPv6
	// /64. A load balancer may check all Services at the same moment.
	MaxConnections = 1024
	MaxPerSource   = 256
	maxRequest     = 8 << 10
	patience       = 5 * time.Second
)

// Server answers on the ports that plans request. It is a reconcile.Target.
type Server struct {
	// Listen opens a port on all addresses of the node; nil uses Listen of this package.
	Listen func(port uint16) (net.Listener, error)
	// Healthy reports whether the service proxy keeps up.
	Healthy func() bool
	Log     *slog.Logger

	mu    sync.Mutex
	pool  *admission.Pool
	open  map[model.Name]*port
	owner map[uint16]model.Name
}

type port struct {
	Check
	l net.Listener
}

var _ reconcile.Target[model.Name, Check] = (*Server)(nil)

// Sync implements reconcile.Target.
func (s *Server) Sync(ctx context.Context, plans map[model.Name]Check) error {
	s.mu.Lock()
	var gone []model.Name
	for k := range s.open {
		if _, ok := plans[k]; !ok {
			gone = append(gone, k)
		}
	}
	s.mu.Unlock()
	return s.Apply(ctx, plans, gone)
}

// Apply implements reconcile.Target.
func (s *Server) Apply(_ context.Context, set map[model.Name]Check, del []model.Name) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open, s.owner = map[model.Name]*port{}, map[uint16]model.Name{}
		s.pool = admission.NewPool(admission.Limits{Total: MaxConnections, PerSource: MaxPerSource})
	}
	failed := reconcile.KeyErrors[model.Name]{}
	for _, k := range del {
		s.close(k)
	}
	for k, c := range set {
		if p, ok := s.open[k]; ok && p.Port == c.Port {
			p.Check = c
			continue
		}
		s.close(k)
		if other, ok := s.owner[c.Port]; ok {
			failed[k] = fmt.Errorf("spec.healthCheckNodePort: %d already belongs to service %s, which keeps it",
				c.Port, other)
			continue
		}
		if len(s.open) >= MaxPorts {
			failed[k] = fmt.Errorf(
				"spec.healthCheckNodePort: %d: %d such ports are open on this node; no more are opened",
				c.Port, MaxPorts)
			continue
		}
		listen := s.Listen
		if listen == nil {
			listen = Listen
		}
		l, err := listen(c.Port)
		if err != nil {
			failed[k] = fmt.Errorf("spec.healthCheckNodePort: %d: %w", c.Port, err)
			continue
		}
		p := &port{c, s.pool.Bound(l)}
		s.open[k], s.owner[c.Port] = p, k
		go s.serve(k, p)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

func (s *Server) close(k model.Name) {
	if p, ok := s.open[k]; ok {
		p.l.Close()
		delete(s.open, k)
		delete(s.owner, p.Port)
	}
}

// Close closes all ports.
func (s *Server) Close() error {
	return s.Sync(context.Background(), nil)
}

// Listen opens a port on all addresses, also while an older agent has it open.
func Listen(port uint16) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) {
			inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET,
				unix.SO_REUSEPORT, 1)
		})
		return errors.Join(err, inner)
	}}
	return lc.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
}

func (s *Server) serve(k model.Name, p *port) {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return // it is closed
		}
		go func() {
			defer c.Close()
			if err := s.answer(c, k, p); err != nil {
				s.Log.Debug("health check", "service", k, "err", err)
			}
		}()
	}
}

// head reads a request's head to its end, and keeps only the first bytes.
func head(c net.Conn) (first []byte, err error) {
	buf, kept, total := make([]byte, 512), 0, 0
	for {
		n, err := c.Read(buf[kept:])
		first = append(first, buf[kept:kept+min(n, len("HEAD ")-len(first))]...)
		total += n
		seen := buf[:kept+n]
		if bytes.Contains(seen, []byte("\r\n\r\n")) || bytes.Contains(seen, []byte("\n\n")) {
			return first, nil
		}
		if err != nil || total > maxRequest {
			return first, errors.Join(err, fmt.Errorf("no end of the request within %d bytes", total))
		}
		// The end may arrive in two parts.
		kept = copy(buf, seen[max(0, len(seen)-3):])
	}
}

// answer waits for the end of the request's head, and answers.
func (s *Server) answer(c net.Conn, k model.Name, p *port) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	first, err := head(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	local := p.Local
	s.mu.Unlock()
	healthy := s.Healthy == nil || s.Healthy()
	status := "200 OK"
	if local == 0 || !healthy {
		status = "503 Service Unavailable"
	}
	body := fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": "+
		"%d,\n\t\"serviceProxyHealthy\": %v\n}", k.Namespace, k.Name, local, healthy)
	reply := fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: application/json\r\nX-Content-Type-Options: "+
		"nosniff\r\nX-Load-Balancing-Endpoint-Weight: %d\r\nDate: %s\r\nContent-Length: %d\r\n"+
		"Connection: close\r\n\r\n",
		status, local, time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"), len(body))
	if !bytes.Equal(first, []byte("HEAD ")) {
		reply += body
	}
	_, err = io.WriteString(c, reply)
	return err
}
