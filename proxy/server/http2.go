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

// Bounds of an HTTP/2 connection. The server of x/net bounds what is queued besides: a
// client that resets streams faster than they end (CVE-2023-44487) waits, or is closed,
// as one that floods with SETTINGS or PING is.
const (
	maxStreams   = 128
	streamWindow = 64 << 10
	connWindow   = 256 << 10
	frameSize    = 16 << 10
	// allStreams bounds exchanges over all connections, clientStreams those of a client: each may hold a window of
	// what has no reader. See streamTable.
	allStreams    = 4096
	clientStreams = 1024
	// pingAfter a silence a client is asked whether it is there.
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
	// config's Shutdown sends GOAWAY; heads bounds heads, for connections that come.
	config  *http.Server
	heads   atomic.Pointer[http.Server]
	limit   int // of a head in bytes, by default
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
		panic(err) // for cipher suites, of which none are named
	}
	return h
}

// quiet is a server that bounds heads, and logs nothing.
func quiet(head int) *http.Server {
	return &http.Server{MaxHeaderBytes: head, ErrorLog: log.New(io.Discard, "", 0)}
}

// setHead replaces the limit of heads. How many fields fit follows: HTTP/2 counts 32 bytes for each (RFC 9113, 6.5.2).
func (h *http2Server) setHead(l h1.HeadLimits) { h.heads.Store(quiet(cmp.Or(l.Bytes, h.limit))) }

// deny answers without Handle.
func (h *http2Server) deny(w http.ResponseWriter, why Refusal, status int) {
	h.s.refused(why)
	if name := h.name.Load(); name != nil && len(*name) > 0 {
		w.Header().Set("Server", string(*name))
	}
	http.Error(w, fmt.Sprintf("%d %s", status, http.StatusText(status)), status)
}

// drain tells all clients to go away: streams that they opened are answered.
func (h *http2Server) drain() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // there is nothing to wait for
	_ = h.config.Shutdown(ctx)
}

// serve is one connection until its end.
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
	case r.TLS != nil && !h.s.certs.Covers(r.TLS.ServerName, []byte(r.Host)):
		// A client that shares a connection for two names must have seen a certificate
		// for both; this one asks again by a connection of its own (RFC 9110, 15.5.20).
		h.deny(w, MisdirectedHost, http.StatusMisdirectedRequest)
		return
	}
	d, err := newStream(w, r, client, local, h.times)
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
