package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// maxStderr bounds what is kept of a command's errors.
const maxStderr = 4 << 10

// errTooLong says that a command printed more than was allowed.
var errTooLong = errors.New("the output is longer than allowed")

// Exec runs a command in a container of a pod and returns its output, at most limit bytes. A longer output is cut, and
// an error. It needs the right to create pods/exec.
func (f Fleet) Exec(ctx context.Context, p Pod, container string, limit int, command ...string) ([]byte, error) {
	req := f.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).
		SubResource("exec").VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true,
		Stderr: true}, scheme.ParameterCodec)
	run, err := executor(f.Client.REST, req)
	if err != nil {
		return nil, fmt.Errorf("exec in %s/%s: %w", p.Namespace, p.Name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, errs := &limited{limit: limit, full: cancel}, &limited{limit: maxStderr}
	err = run.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out, Stderr: errs})
	printed, isCut := out.taken()
	said, _ := errs.taken()
	switch text := strings.TrimSpace(string(said)); {
	case isCut:
		err = errTooLong
	case err != nil && text != "":
		err = fmt.Errorf("%s: %w", text, err)
	}
	if err != nil {
		return printed, fmt.Errorf("exec in %s/%s -c %s: %w", p.Namespace, p.Name, container, err)
	}
	return printed, nil
}

// executor uses WebSockets, or SPDY where the API server or a proxy in front of it has no WebSockets.
func executor(c *rest.Config, req *rest.Request) (remotecommand.Executor, error) {
	ws, err := remotecommand.NewWebSocketExecutor(c, http.MethodGet, req.URL().String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c, http.MethodPost, req.URL())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// limited is a buffer with a bound. It does not embed its buffer, whose ReadFrom would have none. Its methods may be
// called concurrently: a stream that was canceled may still write.
type limited struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	limit int
	cut   bool
	// full is called when more is written, and may be nil.
	full func()
}

// Write implements io.Writer. It takes what is too much, and forgets it.
func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := max(0, l.limit-l.buf.Len())
	l.buf.Write(p[:min(room, len(p))])
	if len(p) > room {
		l.cut = true
		if l.full != nil {
			l.full()
		}
	}
	return len(p), nil
}

// taken returns a copy of what was written, and whether some of it was too much.
func (l *limited) taken() (text []byte, isCut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf.Bytes()), l.cut
}
