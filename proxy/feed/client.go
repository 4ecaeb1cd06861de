package feed

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"

	"wayleave.dev/internal/frame"
)

// Client is the proxy's side. Fill the fields, then call Run once.
type Client struct {
	// Socket is the agent's.
	Socket string
	// Holds gives the sockets that the proxy listens on, and copies of their descriptors
	// in the same order.
	Holds func() ([]Socket, []*os.File)
	// Take puts an update into force, and gives what is wrong then. The files are closed
	// when it returns. Calls come one after the other.
	Take func(*Update, []*os.File) Report
	Log  *slog.Logger
}

// Run follows the agent until ctx ends, and connects again whenever it went away.
func (c *Client) Run(ctx context.Context) error {
	return frame.Follow(ctx, c.Socket, c.follow, func(err error) {
		c.Log.Warn("no agent; going on with what is known",
			"err", err)
	})
}

// follow takes updates from one connection.
func (c *Client) follow(_ context.Context, conn *net.UnixConn) error {
	if err := c.greet(conn); err != nil {
		return err
	}
	said := Report{}
	for {
		var u Update
		files, err := frame.Receive(conn, &u)
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		r := c.Take(&u, files)
		for _, f := range files {
			_ = f.Close()
		}
		if maps.Equal(r.Certificates, said.Certificates) {
			continue
		}
		if err := frame.Send(conn, r, nil); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		said = r
	}
}

func (c *Client) greet(conn *net.UnixConn) error {
	list, files := c.Holds()
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	return frame.Send(conn, hello{protocolVersion, list}, files)
}
