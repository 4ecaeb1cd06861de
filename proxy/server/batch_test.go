package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/h1"
)

// What is written comes whole and in its order, in parts of whatever size, and before the
// connection's end.
func TestBatchesComeInOrder(t *testing.T) {
	for _, most := range []int64{0, mostLargeBatches} { // large buffers, and small ones
		var s batches
		s.used.Store(most)
		client, raw := testnet.TCP(t)
		b := s.of(raw, time.Minute, nil)
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
	_, raw := testnet.TCP(t)
	b := s.of(raw, 200*time.Millisecond, nil)
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

	_, raw = testnet.TCP(t)
	b = s.of(raw, time.Minute, nil)
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

// handshaken is the server's end of a TLS connection, whose client throws away what comes.
func handshaken(b *testing.B, client, server net.Conn) *tls.Conn {
	b.Helper()
	certs, err := NewCertificates()
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
		if c.Handshake() == nil {
			_, _ = io.Copy(io.Discard, client) // sealed: opening costs what is not measured
		}
	}()
	t := tls.Server(server, certs.config())
	if err := t.Handshake(); err != nil {
		b.Fatal(err)
	}
	return t
}

// BenchmarkAnswers writes the head and the body of eight answers, as the server of x/net does: a frame
// in a call.
func BenchmarkAnswers(b *testing.B) {
	for _, kind := range []string{"frame by frame", "batched"} {
		b.Run(kind, func(b *testing.B) {
			client, raw := testnet.TCP(b)
			t := handshaken(b, client, raw)
			var c net.Conn = t
			if kind == "batched" {
				var s batches
				c = s.of(t, time.Minute, nil)
			}
			head, body := make([]byte, 60), make([]byte, 1<<10+9)
			for b.Loop() {
				for range 8 {
					if _, err := c.Write(head); err != nil {
						b.Fatal(err)
					}
					if _, err := c.Write(body); err != nil {
						b.Fatal(err)
					}
				}
				runtime.Gosched()
			}
		})
	}
}

// BenchmarkBodies writes a head and 64 KiB behind it by TLS, over a Direct connection and over one as it is.
func BenchmarkBodies(b *testing.B) {
	for _, kind := range []string{"as it is", "direct"} {
		b.Run(kind, func(b *testing.B) {
			client, raw := testnet.TCP(b)
			var below net.Conn = raw
			if kind == "direct" {
				below = h1.NewDirects().Of(raw)
			}
			t := handshaken(b, client, below)
			d := h1.DirectOf(t)
			head, body := make([]byte, 200), make([]byte, 64<<10)
			b.SetBytes(64 << 10)
			for b.Loop() {
				if d != nil {
					d.Cork()
				}
				for _, p := range [][]byte{head, body} {
					if _, err := t.Write(p); err != nil {
						b.Fatal(err)
					}
				}
				if d != nil {
					if err := d.Uncork(); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
