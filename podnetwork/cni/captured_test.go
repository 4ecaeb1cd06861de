package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/frame"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/podnetwork/cni/call"
)

// Only root calls the agent, whatever the mode of the socket, and no call is longer than a
// network configuration can be or brings more than one descriptor.
func TestOnlyRootMayCall(t *testing.T) {
	path := filepath.Join(testnet.Open(t), "cni.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = (&Server{Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	defer func() { cancel(); <-done }()
	version := call.Request{Command: "NONE", Config: json.RawMessage(`{"cniVersion":"1.1.0"}`)}
	long := version
	long.Netns = string(bytes.Repeat([]byte("x"), 2<<20))
	for name, x := range map[string]struct {
		uid   int
		r     call.Request
		files []*os.File
		ok    bool
	}{
		"root":                 {0, version, nil, true},
		"the user of dns":      {65532, version, nil, false},
		"the user of proxy":    {65533, version, nil, false},
		"another user":         {1000, version, nil, false},
		"too long":             {0, long, nil, false},
		"with two descriptors": {0, version, []*os.File{os.Stderr, os.Stderr}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := testnet.As(x.uid, func() error {
				conn, err := net.Dial("unix", path)
				if err != nil {
					return err
				}
				defer conn.Close()
				c := conn.(*net.UnixConn)
				if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
					return err
				}
				if err := frame.Send(c, x.r, x.files); err != nil {
					return err
				}
				var out call.Response
				_, err = frame.Receive(c, &out)
				return err
			})
			if x.ok != (err == nil) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("answered: %v", err)
			}
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) &&
				!errors.Is(err, unix.EPIPE) {
				t.Errorf("ended by %v", err)
			}
		})
	}
}

// The plugin gives the pod's namespace to the agent's user alone.
func TestThePluginCallsTheAgentAlone(t *testing.T) {
	for _, uid := range []int{1000, 65532} {
		path := filepath.Join(testnet.Open(t), "cni.sock")
		var l net.Listener
		if err := testnet.As(uid, func() (err error) { l, err = net.Listen("unix", path); return err }); err != nil {
			t.Fatal(err)
		}
		got := make(chan int, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				got <- 0
				return
			}
			defer c.Close()
			n, _ := c.Read(make([]byte, 64)) // the end is what is looked for
			got <- n
		}()
		if _, err := call.Call(path, call.Request{Command: "ADD", Config: json.RawMessage(`{}`)}, os.Stderr,
			30*time.Second); err == nil {
			t.Errorf("user %d was called", uid)
		}
		_ = l.Close()
		if n := <-got; n > 0 {
			t.Errorf("user %d was told %d bytes", uid, n)
		}
	}
}
