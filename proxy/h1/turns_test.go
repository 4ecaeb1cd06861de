package h1

import (
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/proxy/message"
)

// TestPipelinesTakeTurns: clients that send requests without a pause take turns with others. A new client is answered
// when each of them has been answered a few times, not when they have used up the scheduler's time slices.
func TestPipelinesTakeTurns(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const clients, turns = 32, 20
	var answers atomic.Int64
	end, served := make(chan struct{}), make(chan int64, 1)
	s := &Server{Limits: DefaultLimits(), Handle: func(_ context.Context, d message.Downstream) {
		if string(d.Request().Path()) == "/new" {
			served <- answers.Load()
		}
		answers.Add(1)
		_ = d.Respond(&message.Response{Status: 204})
	}}
	defer s.Close()
	defer close(end)
	for range clients {
		go s.Serve(t.Context(), &endless{end: end, text: strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 100)},
			nil, false)
	}
	for answers.Load() < 1000*clients {
		time.Sleep(time.Millisecond)
	}
	for range 10 {
		before := answers.Load()
		go s.Serve(t.Context(), &endless{end: end,
			text: "GET /new HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"}, nil, false)
		if n := <-served - before; n > turns*clients {
			t.Errorf("others got %d answers before a new client got one; at most %d are expected", n, turns*clients)
		}
	}
}

// endless is a connection on which a client sends the same bytes for ever, and takes any answer.
type endless struct {
	net.Conn
	text string
	end  chan struct{}
}

func (c *endless) Read(b []byte) (int, error) {
	select {
	case <-c.end:
		return 0, io.EOF
	default:
		return copy(b, c.text), nil
	}
}

func (c *endless) Write(b []byte) (int, error)      { return len(b), nil }
func (c *endless) Close() error                     { return nil }
func (c *endless) SetDeadline(time.Time) error      { return nil }
func (c *endless) SetReadDeadline(time.Time) error  { return nil }
func (c *endless) SetWriteDeadline(time.Time) error { return nil }
func (c *endless) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *endless) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
