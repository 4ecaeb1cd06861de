package server

//lint:file-ignore SA1019 the server of net/http, which is to take the place of that of
// x/net, cannot be given a connection, and closes idle ones at a shutdown before they saw
// GOAWAY.

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
)

// Bounds of an HTTP/2 connection. In addition, the server of x/net bounds its queues: a client that resets streams
// faster than they end (CVE-2023-44487) waits, or is disconnected, like one that floods with SETTINGS or PING.
const (
	maxStreams   = 128
	streamWindow = 64 << 10
	connWindow   = 256 << 10
	frameSize    = 16 << 10
	// allStreams bounds exchanges over all connections, clientStreams those of a client: each may hold a window of
	// unread data. See streamTable.
	allStreams    = 4096
	clientStreams = 1024
	// pingAfter is the silence after which a client gets a PING.
	pingAfter   = 60 * time.Second
	pingTimeout = 15 * time.Second
)

// streamTimes bound waiting for a client.
type streamTimes struct{ read, write time.Duration }

// http2Server serves HTTP/2 connections.
type http2Server struct {
	s     *Server
	times streamTimes
	srv   *http2.Server
	// config's Shutdown sends GOAWAY; heads bounds heads of later connections.
	config  *http.Server
	heads   atomic.Pointer[http.Server]
	limit   int // default limit of a head, in bytes
	name    atomic.Pointer[[]byte]
	streams streamTable
	batches batches
}

func newHTTP2(s *Server, lim h1.Limits) *http2Server {
	h := &http2Server{s: s, times: streamTimes{lim.Body, lim.Write}, limit: lim.Head, config: quiet(lim.Head)}
	h.heads.Store(h.config)
	h.srv = &http2.Server{MaxConcurrentStreams: maxStreams, MaxUploadBufferPerStream: streamWindow,
		MaxUploadBufferPerConnection: connWindow,
		MaxReadFrameSize:             frameSize, IdleTimeout: lim.Idle, ReadIdleTimeout: pingAfter,
		PingTimeout: pingTimeout}
	if err := http2.ConfigureServer(h.config, h.srv); err != nil {
		panic(err) // only for invalid cipher suites, and none are set
	}
	return h
}

// quiet returns a server that bounds heads, and does not log.
func quiet(head int) *http.Server {
	return &http.Server{MaxHeaderBytes: head, ErrorLog: log.New(io.Discard, "", 0)}
}

// setHead replaces the limit of heads. The number of fields follows from it: HTTP/2 counts 32 bytes for each (RFC 9113,
// 6.5.2).
func (h *http2Server) setHead(l h1.HeadLimits) { h.heads.Store(quiet(cmp.Or(l.Bytes, h.limit))) }

// deny answers without Handle.
func (h *http2Server) deny(w http.ResponseWriter, why Refusal, status int) {
	h.s.refused(why)
	if name := h.name.Load(); name != nil && len(*name) > 0 {
		w.Header().Set("Server", string(*name))
	}
	http.Error(w, fmt.Sprintf("%d %s", status, http.StatusText(status)), status)
}

// drain sends GOAWAY to all clients: open streams are answered.
func (h *http2Server) drain() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // there is nothing to wait for
	_ = h.config.Shutdown(ctx)
}

// serve handles one connection until it ends.
func (h *http2Server) serve(k *conn, c net.Conn) {
	k.state.To(h1.Idle)
	local, client := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	var session *message.Session
	if t, ok := c.(*tls.Conn); ok {
		said := t.ConnectionState()
		session = &message.Session{ServerName: said.ServerName, Certificates: said.PeerCertificates}
	}
	h.srv.ServeConn(h.batches.of(c, h.times.write, k), &http2.ServeConnOpts{Context: h.s.base,
		BaseConfig: h.heads.Load(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer k.end()
			if !k.begin() {
				panic(http.ErrAbortHandler)
			}
			h.handle(w, r, k, client, local, session)
		})})
	if k.flooded.Load() {
		h.s.refused(Flood)
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return netip.AddrPortFrom(t.AddrPort().Addr().Unmap(), t.AddrPort().Port())
	}
	return netip.AddrPort{}
}

// handle answers one request.
func (h *http2Server) handle(w http.ResponseWriter, r *http.Request, k *conn, client, local netip.AddrPort,
	session *message.Session) {
	switch {
	case r.Method == http.MethodConnect:
		h.deny(w, MalformedMessage, http.StatusNotImplemented)
		return
	// r.TLS is of no use: it is nil for a request that names the scheme http.
	case session != nil && !h.s.certs.Covers(session.ServerName, []byte(r.Host)):
		// A client that uses a connection for two names must have seen a valid certificate for both; otherwise it
		// repeats the request on a new connection (RFC 9110, 15.5.20).
		h.deny(w, MisdirectedHost, http.StatusMisdirectedRequest)
		return
	}
	d, err := newStream(w, r, client, local, session != nil, h.times)
	if err != nil {
		h.deny(w, MalformedMessage, http.StatusBadRequest)
		return
	}
	d.k, d.req.Session = k, session
	whom := whose(client.Addr())
	if why := h.streams.enter(whom, d); why != "" {
		h.deny(w, why, http.StatusServiceUnavailable)
		return
	}
	defer h.streams.leave(whom, d)
	defer d.stop()
	h.s.handle(r.Context(), d)
	if d.broken() {
		panic(http.ErrAbortHandler) // resets the stream
	}
}
