package proxy

//lint:file-ignore SA1019 the transport of net/http, which is to take the place of that of
// x/net, opens a connection for each request that comes before it knows that all can
// share one.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"wayleave.dev/proxy/upstream"
)

// http2Clients have the connections to endpoints that speak HTTP/2: one to each, for all
// requests, and more where an endpoint bounds its streams. Where the PROXY protocol names
// clients, each has its own.
type http2Clients struct {
	once             sync.Once
	plain, encrypted http.RoundTripper
}

// Times of connections to endpoints.
const (
	http2Idle    = 50 * time.Second
	http2Silence = 20 * time.Second // then it is asked whether it lives
	http2Ping    = 10 * time.Second
)

// endpointKey finds the endpoint in a context that a connection is opened by, originKey
// the client that it is told.
type (
	endpointKey struct{}
	originKey   struct{}
)

// dialError is a connection that could not be opened: nothing was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (p *Proxy) roundTripper(encrypted bool) http.RoundTripper {
	c := &p.http2
	c.once.Do(func() {
		make := func(encrypted bool) http.RoundTripper {
			return &http2.Transport{
				AllowHTTP: true, DisableCompression: true, MaxHeaderListSize: 64 << 10,
				IdleConnTimeout: http2Idle, ReadIdleTimeout: http2Silence, PingTimeout: http2Ping, WriteByteTimeout: http2Silence,
				DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
					conn, err := p.dial2(ctx, encrypted)
					if err != nil {
						return nil, &dialError{err}
					}
					return conn, nil
				},
			}
		}
		c.plain, c.encrypted = make(false), make(true)
	})
	if encrypted {
		return c.encrypted
	}
	return c.plain
}

func (p *Proxy) dial2(ctx context.Context, encrypted bool) (net.Conn, error) {
	e, ok := ctx.Value(endpointKey{}).(*upstream.Endpoint)
	if !ok {
		return nil, errors.New("no endpoint")
	}
	// Others wait for the same connection: it does not end with who asked first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.current().Timeouts.Connect)
	defer cancel()
	of, _ := ctx.Value(originKey{}).(upstream.Origin)
	conn, err := e.DialFor(ctx, of, encrypted, http2.NextProtoTLS)
	if err != nil {
		return nil, err
	}
	if t, ok := conn.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol != http2.NextProtoTLS {
		return nil, errors.Join(fmt.Errorf("endpoint %s does not speak HTTP/2", e.Addr), conn.Close())
	}
	return conn, nil
}
