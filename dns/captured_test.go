package dns

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wayleave.dev/dns/frames"
	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// A captured server says more than hello, or hello in another way: the agent ends the
// connection, and has kept nothing.
func TestACapturedServerIsBounded(t *testing.T) {
	path := filepath.Join(testnet.Open(t), "feed.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	feed := &Feed{Open: OpenSocket, AllowUID: 65532, Log: slog.New(slog.DiscardHandler)}
	if err := feed.Sync(t.Context(), map[model.Name]schema.Records{}); err != nil {
		t.Fatal(err)
	}
	feed.Configure(schema.Settings{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = feed.Serve(ctx, l)
	}()
	defer func() { cancel(); <-done }()
	good := handoff.Hello[schema.Socket]{Version: frames.Version}
	for name, x := range map[string]struct {
		uid    int
		frames []any
		files  []*os.File
		ends   bool
	}{
		"hello":              {65532, []any{good}, nil, false},
		"the proxy's user":   {65533, []any{good}, nil, true},
		"with a descriptor":  {65532, []any{good}, []*os.File{os.Stderr}, true},
		"an unknown field":   {65532, []any{map[string]any{"version": frames.Version, "more": 1}}, nil, true},
		"hello twice":        {65532, []any{good, good}, nil, true},
		"an empty frame too": {65532, []any{good, json.RawMessage(`{}`)}, nil, true},
		"a long hello": {65532, []any{handoff.Hello[schema.Socket]{Version: frames.Version,
			Holds: make([]schema.Socket, 1<<14)}}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			var c *net.UnixConn
			err := testnet.As(x.uid, func() error {
				conn, err := net.Dial("unix", path)
				if err == nil {
					c = conn.(*net.UnixConn)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, f := range x.frames {
				_ = frame.Send(c, f, x.files) // an error says that the agent has ended it
			}
			wait := 30 * time.Second
			if !x.ends {
				wait = 200 * time.Millisecond
			}
			_ = c.SetReadDeadline(time.Now().Add(wait))
			for err = nil; err == nil; {
				var u frames.Update
				_, err = frame.Receive(c, &u)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) == x.ends {
				t.Errorf("the connection ends by %v", err)
			}
		})
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		if n := feed.Servers(); n != 0 {
			return errors.New("servers are still there")
		}
		return nil
	})
}
