package frame

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wayleave.dev/internal/testnet"
)

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); b.Close() })
	return c.(*net.UnixConn), b
}

func TestAFrameCarriesDescriptors(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Send(a, map[string]int{"x": 7}, []*os.File{w}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var got map[string]int
	files, err := Receive(b, &got)
	if err != nil || got["x"] != 7 || len(files) != 1 {
		t.Fatalf("%v %v %v", got, files, err)
	}
	if _, err := files[0].WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	files[0].Close()
	if text, err := io.ReadAll(r); err != nil || string(text) != "hello" {
		t.Errorf("%q %v", text, err)
	}
	if uid, err := PeerUID(b); err != nil || int(uid) != os.Getuid() {
		t.Errorf("peer is user %d, %v", uid, err)
	}
}

func TestBadFramesAreErrors(t *testing.T) {
	for _, raw := range []string{"\x00", "\xff\xff\xff\xff", "\x00\x00\x00\x05{", "\x00\x00\x00\x01{"} {
		a, b := pair(t)
		if _, err := a.Write([]byte(raw)); err != nil {
			t.Fatal(err)
		}
		a.Close()
		var got map[string]int
		if _, err := Receive(b, &got); err == nil {
			t.Errorf("%q was taken for a frame", raw)
		}
	}
}

// received is what ReceiveWithin makes of raw bytes and descriptors.
func received(t testing.TB, raw []byte, fds []int, most Limits) ([]*os.File, error) {
	t.Helper()
	a, b := pair(t)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	go func() { // errors: the reader refused
		if len(raw) > 0 {
			_, _, _ = a.WriteMsgUnix(raw, rights, nil)
		}
		_ = a.Close()
	}()
	var got struct {
		X int `json:"x"`
	}
	return ReceiveWithin(b, &got, most)
}

func framed(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// openFiles counts this process's descriptors.
func openFiles(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestACapturedPeerIsBounded(t *testing.T) {
	most := Limits{Bytes: 16, Files: 2}
	for name, x := range map[string]struct {
		raw []byte
		fds int
		ok  bool
	}{
		"within":           {framed(`{"x":1}`), 2, true},
		"too long":         {framed(`{"x":1          }`), 0, false},
		"4 GiB announced":  {[]byte("\xff\xff\xff\xff{"), 0, false},
		"one file more":    {framed(`{"x":1}`), 3, false},
		"all files":        {framed(`{"x":1}`), 250, false},
		"unknown field":    {framed(`{"x":1,"y":2}`), 2, false},
		"a second value":   {framed(`{"x":1}{"x":2}`), 2, false},
		"no JSON":          {framed(`x`), 2, false},
		"files and no end": {[]byte{0, 0, 0, 9, '{'}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := openFiles(t)
			fds := make([]int, x.fds)
			for i := range fds {
				fds[i] = int(os.Stderr.Fd())
			}
			files, err := received(t, x.raw, fds, most)
			if (err == nil) != x.ok {
				t.Errorf("error %v; accepted is %v", err, x.ok)
			}
			if err != nil && len(files) > 0 {
				t.Errorf("%d descriptors beside the error %v", len(files), err)
			}
			closeAll(files)
			if after := openFiles(t); after > before+2 { // the pair of sockets
				t.Errorf("%d descriptors are open, %d before", after, before)
			}
		})
	}
}

func FuzzReceiveWithin(f *testing.F) {
	f.Add(framed(`{"x":1}`), uint8(0))
	f.Add(framed(`{"x":1}`), uint8(5))
	f.Add([]byte{0, 0, 0, 1, '{'}, uint8(1))
	f.Add([]byte("\xff\xff\xff\xff"), uint8(255))
	f.Add(framed(`{"x":1,"x":{"x":[[[[]]]]}}`), uint8(2))
	f.Fuzz(func(t *testing.T, raw []byte, n uint8) {
		fds := make([]int, min(n, 250))
		for i := range fds {
			fds[i] = int(os.Stderr.Fd())
		}
		if len(raw) > 1<<16 {
			return
		}
		files, err := received(t, raw, fds, Limits{Bytes: 1 << 10, Files: 2})
		if len(files) > 2 || err != nil && len(files) > 0 {
			t.Errorf("%d descriptors, %v", len(files), err)
		}
		closeAll(files)
	})
}

// A client speaks to no server but the agent's user, whatever took the place of its socket.
func TestAnImpostorIsNotFollowed(t *testing.T) {
	if os.Getuid() != Agent {
		t.Fatal("run as root, to become another user")
	}
	for uid, want := range map[int]bool{Agent: true, 65532: false, 65533: false, 1000: false} {
		t.Run(strconv.Itoa(uid), func(t *testing.T) {
			path := listenAs(t, uid)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			spoke, lost := make(chan struct{}, 1), make(chan error, 1)
			go func() {
				_ = Follow(ctx, path, func(ctx context.Context, _ *net.UnixConn) error {
					spoke <- struct{}{}
					<-ctx.Done()
					return ctx.Err()
				}, func(err error) { lost <- err })
			}()
			select {
			case <-spoke:
				if !want {
					t.Errorf("spoke to user %d", uid)
				}
			case err := <-lost:
				if want || !strings.Contains(err.Error(), strconv.Itoa(uid)) {
					t.Errorf("lost: %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("neither spoke nor lost")
			}
		})
	}
}

// listenAs serves a socket as another user.
func listenAs(t *testing.T, uid int) string {
	t.Helper()
	path := filepath.Join(testnet.Open(t), "s")
	err := testnet.As(uid, func() error {
		l, err := net.Listen("unix", path)
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A peer that connects again and again takes eight places, and no more.
func TestAPeerThatConnectsAgainAndAgainIsHeldUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var served atomic.Int32
	done := make(chan struct{})
	start := time.Now()
	go func() {
		defer close(done)
		_ = Serve(ctx, l, func(context.Context, *net.UnixConn) error {
			served.Add(1)
			return errors.New("no")
		}, nil)
	}()
	for range 100 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	testnet.Eventually(t, 30*time.Second, func() error {
		if n := served.Load(); n < maxPeers {
			return fmt.Errorf("%d were served", n)
		}
		return nil
	})
	cancel()
	<-done
	if n, allowed := int(served.Load()), maxPeers*(1+int(time.Since(start)/perPeer)); n > allowed {
		t.Errorf("%d were served in %s, %d are allowed", n, time.Since(start), allowed)
	}
}
