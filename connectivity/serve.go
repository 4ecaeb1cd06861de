package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxDatagram is the largest that IP carries.
const maxDatagram = 65535

// Listen opens the sockets of a server at an address, such as "" for all of the pod.
func Listen(host string, tcp, udp string) (*Server, error) {
	s := &Server{}
	l, err := net.Listen("tcp", net.JoinHostPort(host, tcp))
	if err != nil {
		return nil, err
	}
	s.tcp = l
	// A socket for each family: only then can both forbid fragments. A pod may have one family.
	for _, network := range []string{"udp4", "udp6"} {
		c, err := (&net.ListenConfig{Control: noFragments}).ListenPacket(context.Background(), network,
			net.JoinHostPort(host, udp))
		if err == nil {
			s.udp = append(s.udp, c)
		}
	}
	if len(s.udp) == 0 {
		return nil, errors.Join(errors.New("no socket for UDP"), l.Close())
	}
	return s, nil
}

// Server answers probes.
type Server struct {
	tcp net.Listener
	udp []net.PacketConn
}

// Serve answers with the name until the context ends.
func (s *Server) Serve(ctx context.Context, name string) error {
	web := &http.Server{Handler: handler(name), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	var wg sync.WaitGroup
	for _, c := range s.udp {
		wg.Go(func() { echo(c, name) })
	}
	stop := context.AfterFunc(ctx, func() {
		_ = web.Close()
		for _, c := range s.udp {
			_ = c.Close()
		}
	})
	defer stop()
	err := web.Serve(s.tcp)
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// handler returns the name, or the body that it was sent.
func handler(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAnswer))
			if err != nil {
				http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
				return
			}
			_, _ = w.Write(body)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer{Pod: name})
	})
}

// echo answers each datagram with the name, in a datagram of the same size where the name fits. It answers none with
// more bytes than came, but for the name of a pod.
func echo(c net.PacketConn, name string) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // such as an ICMP error of an earlier answer
			continue
		}
		out := buf[:n]
		if n >= len(name)+1 {
			clear(out)
			copy(out, name+"\n")
		} else {
			out = []byte(strings.TrimSpace(name) + "\n")
		}
		_, _ = c.WriteTo(out, from)
	}
}
