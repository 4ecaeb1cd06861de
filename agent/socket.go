package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"wayleave.dev/internal/admission"
)

// The bounds of the agent's unix sockets, which are for the kubelet's probes and for `wayleave status`: the port of
// another container of the pod must not take the agent's memory.
const (
	maxUnixConns   = 32
	maxUnixHeader  = 4 << 10
	unixTimeout    = 5 * time.Second
	unixIdle       = time.Second
	unixWriteBound = 30 * time.Second // a status of 10,000 Services takes seconds to render
)

// serve runs an HTTP server on a unix socket until ctx ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: unixTimeout, ReadTimeout: unixTimeout, IdleTimeout: unixIdle,
		WriteTimeout: unixWriteBound, MaxHeaderBytes: maxUnixHeader}
	l = admission.New(l, admission.Limits{Total: maxUnixConns, PerSource: maxUnixConns})
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// Ask does one GET over a unix socket, for the commands of the program.
func Ask(ctx context.Context, socket, path string) (body string, code int, err error) {
	return request(ctx, http.MethodGet, socket, path)
}

// Tell does one POST without a body over a unix socket.
func Tell(ctx context.Context, socket, path string) (body string, code int, err error) {
	return request(ctx, http.MethodPost, socket, path)
}

func request(ctx context.Context, method, socket, path string) (body string, code int, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://wayleave"+path, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return string(raw), resp.StatusCode, err
}

// SocketOfContainer is the socket of the process of this container of Wayleave, unless one is set.
func SocketOfContainer(set string) (string, error) {
	if set != "" {
		return set, nil
	}
	for _, path := range []string{HealthSocket, WriterSocket, "/own/dns-health.sock", "/own/proxy-health.sock"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no process of Wayleave runs in this container: %w; run the command there, by "+
		"kubectl -n kube-system exec POD -c agent|dns|proxy", os.ErrNotExist)
}

// listenUnix makes a socket that only root may use, in place of a stale one.
func listenUnix(path string) (net.Listener, error) { return listenMode(path, 0o600) }

// ListenChild makes the socket that another container of the pod connects to. The feed asks the kernel for the caller's
// user; the mode only lets that user try.
func ListenChild(path string) (*net.UnixListener, error) {
	// The kubelet makes an emptyDir writable for all. The container mounts it read-only; this is
	// for a mount that is not.
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return listenMode(path, 0o666)
}

func listenMode(path string, mode os.FileMode) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
