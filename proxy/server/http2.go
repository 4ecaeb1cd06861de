package server

//lint:file-ignore SA1019 the server of net/http, which is to take the place of that of
// x/net, cannot be given a connection, and closes idle ones at a shutdown before they saw
// GOAWAY.

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/net/http2"

	"wayleave.dev/proxy/h1"
)

// Bounds of an HTTP/2 connection. The server of x/net bounds what is queued besides: a
// client that resets streams faster than they end (CVE-2023-44487) waits, or is closed,
// as one that floods with SETTINGS or PING is.
const (
	maxStreams   = 128
	streamWindow = 64 << 10
	connWindow   = 256 << 10
	frameSize    = 16 << 10
	// allStreams bounds exchanges over all connections, clientStreams those of a client:
	// each may hold a window of what nobody reads.
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
	// config bounds heads, and its Shutdown sends GOAWAY.
	config  *http.Server
	counts  counts
	batches batches
}

func newHTTP2(s *Server, lim h1.Limits) *http2Server {
	h := &http2Server{s: s, times: streamTimes{lim.Body, lim.Write},
		config: &http.Server{MaxHeaderBytes: lim.Head, ErrorLog: log.New(io.Discard, "", 0)}}
	h.srv = &http2.Server{MaxConcurrentStreams: maxStreams, MaxUploadBufferPerStream: streamWindow, MaxUploadBufferPerConnection: connWindow,
		MaxReadFrameSize: frameSize, IdleTimeout: lim.Idle, ReadIdleTimeout: pingAfter, PingTimeout: pingTimeout}
	if err := http2.ConfigureServer(h.config, h.srv); err != nil {
		panic(err) // for cipher suites, of which none are named
	}
	return h
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
	h.srv.ServeConn(h.batches.of(c, h.times.write, k), &http2.ServeConnOpts{Context: h.s.base, BaseConfig: h.config, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !k.begin() {
			panic(http.ErrAbortHandler)
		}
		defer k.end()
		h.handle(w, r, client, local)
	})})
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return netip.AddrPortFrom(t.AddrPort().Addr().Unmap(), t.AddrPort().Port())
	}
	return netip.AddrPort{}
}

// enter counts an exchange, or refuses it; leave, if not nil, takes it back.
func (h *http2Server) enter(w http.ResponseWriter, client netip.Addr) (leave func()) {
	refuse := func(why Refusal) {
		h.s.refused(why)
		http.Error(w, "503 Service Unavailable", http.StatusServiceUnavailable)
	}
	if !h.counts.enter(allStreams) {
		refuse(TooManyStreams)
		return nil
	}
	if !h.counts.enterClient(client, clientStreams) {
		h.counts.leave()
		refuse(TooManyOfClientStreams)
		return nil
	}
	return func() {
		h.counts.leaveClient(client)
		h.counts.leave()
	}
}

// handle answers one request.
func (h *http2Server) handle(w http.ResponseWriter, r *http.Request, client, local netip.AddrPort) {
	switch {
	case r.Method == http.MethodConnect:
		h.s.refused(MalformedMessage)
		http.Error(w, "501 Not Implemented", http.StatusNotImplemented)
		return
	case r.TLS != nil && !h.s.certs.Covers(r.TLS.ServerName, []byte(r.Host)):
		// A client that shares a connection for two names must have seen a certificate
		// for both; this one asks again by a connection of its own (RFC 9110, 15.5.20).
		h.s.refused(MisdirectedHost)
		http.Error(w, "421 Misdirected Request", http.StatusMisdirectedRequest)
		return
	}
	leave := h.enter(w, whose(client.Addr()))
	if leave == nil {
		return
	}
	defer leave()
	d, err := newStream(w, r, client, local, h.times)
	if err != nil {
		h.s.refused(MalformedMessage)
		http.Error(w, "400 Bad Request", http.StatusBadRequest)
		return
	}
	defer d.stop()
	h.s.handle(r.Context(), d)
	if d.broken() {
		panic(http.ErrAbortHandler) // resets the stream
	}
}
