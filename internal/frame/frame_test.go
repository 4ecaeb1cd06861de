package frame

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func pair(t *testing.T) (a, b *net.UnixConn) {
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
