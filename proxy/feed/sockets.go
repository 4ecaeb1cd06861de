package feed

import (
	"context"
	"log/slog"
	"net"
	"os"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/proxy/schema"
)

// NewKeeper returns the keeper of the proxies' sockets. path is where agents of the node hand them over; empty for
// nowhere.
func NewKeeper(path string, log *slog.Logger) *handoff.Keeper[schema.Socket] {
	return &handoff.Keeper[schema.Socket]{Path: path, Bind: OpenSocket, Check: listens, Log: log}
}

// OpenSocket binds a listening socket. It does not share its port: if another program has the port,
// that is an error, and no client is lost to that program.
func OpenSocket(k schema.Socket) (*os.File, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", k.Addr.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

func listens(k schema.Socket, f *os.File) error { return handoff.ListensTCP(f, k.Addr) }
