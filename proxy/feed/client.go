package feed

import (
	"context"
	"log/slog"
	"maps"
	"os"

	"wayleave.dev/internal/handoff"
)

// Client is the proxy's side. Fill the fields, then call Run once.
type Client struct {
	// Socket is the agent's.
	Socket string
	// Holds gives the sockets that the proxy listens on, and copies of their descriptors
	// in the same order.
	Holds func() ([]Socket, []*os.File)
	// Take puts an update into force. The files are closed when it returns. Report is what is wrong
	// then. Calls come one after the other.
	Take   func(*Update, []*os.File)
	Report func() Report
	Log    *slog.Logger
}

// Run follows the agent until ctx ends, and connects again whenever it went away.
func (c *Client) Run(ctx context.Context) error {
	client := handoff.Client[Socket, Update, Report]{
		Protocol: protocol(), Socket: c.Socket,
		Hello: func() (handoff.Hello[Socket], []*os.File) {
			list, files := c.Holds()
			return handoff.Hello[Socket]{Holds: list}, files
		},
		Take:   func(u Update, files []*os.File) { c.Take(&u, files) },
		Report: c.Report,
		Same:   func(a, b Report) bool { return maps.Equal(a.Certificates, b.Certificates) },
		Lost:   func(err error) { c.Log.Warn("no agent; going on with what is known", "err", err) },
	}
	return client.Run(ctx)
}
