package hostile

import (
	"context"
	"io"
	"net"
	"time"
)

// Idle sends nothing, and waits until the server closes the connection.
func Idle(_ context.Context, c net.Conn) error { return drain(c) }

// Partial sends the start of a message and never completes it.
func Partial(begin []byte) func(context.Context, net.Conn) error {
	return func(_ context.Context, c net.Conn) error {
		if _, err := c.Write(begin); err != nil {
			return err
		}
		return drain(c)
	}
}

// Slow sends a message repeatedly, a byte at a time.
func Slow(message []byte, every time.Duration) func(context.Context, net.Conn) error {
	return func(ctx context.Context, c net.Conn) error {
		go func() { _ = drain(c) }()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i = (i + 1) % len(message) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
			if _, err := c.Write(message[i : i+1]); err != nil {
				return err
			}
		}
	}
}

// Bytes sends begin, and then chunk repeatedly, as fast as the server accepts it. It reads the server's answers only if
// read is true; otherwise they accumulate.
func Bytes(begin, chunk []byte, read bool) func(context.Context, net.Conn) error {
	return func(_ context.Context, c net.Conn) error {
		if read {
			go func() { _ = drain(c) }()
		}
		if _, err := c.Write(begin); err != nil {
			return err
		}
		for {
			if _, err := c.Write(chunk); err != nil {
				return err
			}
		}
	}
}

func drain(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	return err
}
