package proxy

//lint:file-ignore SA1019 the transport of net/http, which is to take the place of that of
// x/net, opens a connection for each request that comes before it knows that all can
// share one.

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/upstream"
)

// http2Clients holds the connections to endpoints that speak HTTP/2: one to each, for all requests, and more if an
// endpoint limits its streams. If the PROXY protocol names clients, each client has its own.
type http2Clients struct {
	mu sync.Mutex
	// head is the transports' limit of a response's head, in bytes.
	head             int
	plain, encrypted *http2.Transport
}

// Times of connections to endpoints.
const (
	http2Idle    = 50 * time.Second
	http2Silence = 20 * time.Second // then the endpoint gets a PING
	http2Ping    = 10 * time.Second
)

// endpointKey and originKey find the endpoint, and the client that it is told, in the context in which a connection is
// opened.
type (
	endpointKey struct{}
	originKey   struct{}
)

// dialError means that a connection could not be opened: nothing was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (p *Proxy) roundTripper(encrypted bool) http.RoundTripper {
	c, head := &p.http2, p.responseHead().Bytes
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.plain == nil || c.head != head {
		if c.plain != nil { // their streams continue
			c.plain.CloseIdleConnections()
			c.encrypted.CloseIdleConnections()
		}
		c.head, c.plain, c.encrypted = head, p.transport2(false, head), p.transport2(true, head)
	}
	if encrypted {
		return c.encrypted
	}
	return c.plain
}

// responseHead returns the current limits.
func (p *Proxy) responseHead() h1.HeadLimits {
	l, d := p.current().ResponseHead, h1.DefaultResponseHead()
	return h1.HeadLimits{Bytes: cmp.Or(l.Bytes, d.Bytes), Fields: cmp.Or(l.Fields, d.Fields)}
}

func (p *Proxy) transport2(encrypted bool, head int) *http2.Transport {
	return &http2.Transport{
		AllowHTTP: true, DisableCompression: true, MaxHeaderListSize: uint32(head),
		IdleConnTimeout: http2Idle, ReadIdleTimeout: http2Silence, PingTimeout: http2Ping,
		WriteByteTimeout: http2Silence,
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			conn, err := p.dial2(ctx, encrypted)
			if err != nil {
				return nil, &dialError{err}
			}
			return conn, nil
		},
	}
}

// isHeaderListTooLarge recognizes x/net's error for a response whose head exceeds MaxHeaderListSize; it is not
// exported.
func isHeaderListTooLarge(err error) bool {
	return err != nil && strings.Contains(err.Error(), "response header list larger than advertised limit")
}

func (p *Proxy) dial2(ctx context.Context, encrypted bool) (net.Conn, error) {
	e, ok := ctx.Value(endpointKey{}).(*upstream.Endpoint)
	if !ok {
		return nil, errors.New("no endpoint")
	}
	// Other requests wait for the same connection: it does not end with the first request.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.current().Timeouts.Connect)
	defer cancel()
	of, _ := ctx.Value(originKey{}).(upstream.Origin)
	conn, err := e.DialFor(ctx, of, encrypted, http2.NextProtoTLS)
	if err != nil {
		return nil, err
	}
	// A server without ALPN negotiates nothing, and may speak HTTP/2 all the same.
	if t, ok := conn.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol != http2.NextProtoTLS &&
		t.ConnectionState().NegotiatedProtocol != "" {
		return nil, errors.Join(fmt.Errorf("endpoint %s does not speak HTTP/2", e.Addr), conn.Close())
	}
	return conn, nil
}
