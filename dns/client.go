package dns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Open sends a request to the server's own socket and returns the body, for the caller to read and close. A status
// other than OK becomes an error with the server's text.
func Open(ctx context.Context, socket, path string) (io.ReadCloser, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _,
		_ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://dns"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		raw, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, errors.Join(errors.New(strings.TrimSpace(string(raw))), err)
	}
	return resp.Body, nil
}

// Get is Open for a short answer.
func Get(ctx context.Context, socket, path string) (string, error) {
	body, err := Open(ctx, socket, path)
	if err != nil {
		return "", err
	}
	defer body.Close()
	raw, err := io.ReadAll(body)
	return string(raw), err
}

// QueryPath returns the path of a pod's walk on the server's own socket, for Open.
func QueryPath(pod, name, qtype string) string {
	return "/query?" + url.Values{"pod": {pod}, "name": {name}, "type": {qtype}}.Encode()
}

// LogPath returns the path of a query log on the server's own socket, for Open.
func LogPath(pod, name string, d time.Duration) string {
	return "/log?" + url.Values{"pod": {pod}, "name": {name}, "for": {d.String()}}.Encode()
}
