package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// tcp are the two ends of a connection.
func tcp(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// What is written comes whole and in its order, in parts of whatever size, and before the
// connection's end.
func TestBatchesComeInOrder(t *testing.T) {
	for _, most := range []int64{0, mostLargeBatches} { // large buffers, and small ones
		var s batches
		s.used.Store(most)
		client, raw := tcp(t)
		b := s.of(raw, time.Minute)
		var want []byte
		for i := range 3000 {
			want = append(want, bytes.Repeat([]byte{byte(i)}, i%257)...)
		}
		want = append(want, bytes.Repeat([]byte("large"), 60000)...)
		go func() {
			for rest, n := want, 1; len(rest) > 0; n = n*3%200003 + 1 {
				part := rest[:min(n, len(rest))]
				if m, err := b.Write(part); m != len(part) || err != nil {
					t.Errorf("wrote %d of %d: %v", m, len(part), err)
				}
				rest = rest[len(part):]
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}()
		got, err := io.ReadAll(client)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes came of %d, the same: %v, %v", len(got), len(want), bytes.Equal(got, want), err)
		}
		if n := s.used.Load(); n != most {
			t.Errorf("%d buffers are in use after the end", n-most)
		}
		if _, err := b.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("writing after the end: %v", err)
		}
	}
}

// A client that takes nothing holds no more than two buffers, and is given up in time; closing
// does not wait for it.
func TestBatchesOfAClientThatTakesNothing(t *testing.T) {
	var s batches
	_, raw := tcp(t)
	b := s.of(raw, 200*time.Millisecond)
	part, start := make([]byte, frameSize), time.Now()
	var err error
	for err == nil {
		_, err = b.Write(part)
		if n := s.used.Load(); n > 2 {
			t.Fatalf("%d buffers are held", n)
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after %s: %v, want a time-out", time.Since(start), err)
	}

	_, raw = tcp(t)
	b = s.of(raw, time.Minute)
	stuck := make(chan error)
	go func() {
		var err error
		for err == nil {
			_, err = b.Write(part)
		}
		stuck <- err
	}()
	time.Sleep(300 * time.Millisecond) // it waits by then, or has not begun: both must end
	if err := b.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := <-stuck; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write that waits at the end: %v", err)
	}
	if n := s.used.Load(); n != 0 {
		t.Errorf("%d buffers are in use after the end", n)
	}
}
