package frame

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Bounds of a server, so that a captured peer that reconnects in a loop takes little of the agent's time.
const (
	// maxPeers are served at once; others wait in the kernel's queue.
	maxPeers = 8
	// perPeer is the minimum time for which a connection takes its place.
	perPeer = time.Second
)

// Serve calls fn for every connection to a listener until ctx ends, and then closes the listener and all connections.
// It returns when all calls have returned. Eight connections are served at once, each takes its place for at least a
// second: others wait. lost, which may be nil, gets the reason why one ended, unless its peer closed it or ctx ended.
func Serve(ctx context.Context, l *net.UnixListener, fn func(context.Context, *net.UnixConn) error,
	lost func(error)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, maxPeers)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		c, err := Accept(ctx, l)
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer func() { <-places }()
			until := time.Now().Add(perPeer)
			serveOne(ctx, c, fn, lost)
			select {
			case <-ctx.Done():
			case <-time.After(time.Until(until)):
			}
		})
	}
}

func serveOne(ctx context.Context, c *net.UnixConn, fn func(context.Context, *net.UnixConn) error, lost func(error)) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := fn(ctx, c); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) && lost != nil {
		lost(err)
	}
}

// Agent is the user of the agent.
const Agent = 0

// Only refuses a peer that is neither one of these users nor root.
func Only(c *net.UnixConn, uids ...uint32) error {
	uid, err := PeerUID(c)
	if err != nil {
		return err
	}
	if uid != Agent && !slices.Contains(uids, uid) {
		return fmt.Errorf("user %d may not connect", uid)
	}
	return nil
}

// ByAgent refuses a server that was not the agent's user when it began to listen.
func ByAgent(c *net.UnixConn) error {
	uid, err := PeerUID(c)
	if err != nil {
		return err
	}
	if uid != Agent {
		return fmt.Errorf("user %d serves the socket; the agent is user %d", uid, Agent)
	}
	return nil
}

// Follow connects to the agent's socket and calls fn with the connection, again whenever that ends, until ctx ends,
// whose error it returns. Before each retry it waits: 50 ms at first, doubled up to a second, and reset after fn has
// run for longer than that. lost gets the reason why there is no connection.
func Follow(ctx context.Context, socket string, fn func(context.Context, *net.UnixConn) error, lost func(error)) error {
	const first, most = 50 * time.Millisecond, time.Second
	for wait := first; ctx.Err() == nil; {
		start := time.Now()
		err := follow(ctx, socket, fn)
		if ctx.Err() != nil {
			break
		}
		lost(err)
		if time.Since(start) > most {
			wait = first
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, most)
	}
	return ctx.Err()
}

func follow(ctx context.Context, socket string, fn func(context.Context, *net.UnixConn) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	c := conn.(*net.UnixConn)
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := ByAgent(c); err != nil {
		return err
	}
	return fn(ctx, c)
}
