package h1

import (
	"bufio"
	"io"
	"net/http"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/message"
)

// Who has stopped to watch a client is not told any more that it left: what would be given
// up is another's by then.
func TestNobodyIsToldBehindStop(t *testing.T) {
	client, server := testnet.TCP(t)
	x := &exchange{k: &serverConn{c: server}}
	began, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	stop := x.Watch(func() {
		close(began)
		<-release
	})
	client.Close()
	<-began
	go func() {
		stop()
		close(ended)
	}()
	select {
	case <-ended:
		t.Error("stop returns while the client's end is told")
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	<-ended
}

// A connection that was stopped while its answer came is of no more use.
func TestAStoppedConnectionIsNotKept(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		client, server := testnet.TCP(t)
		go func() {
			if _, err := http.ReadRequest(bufio.NewReader(server)); err == nil {
				_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}()
		u := Dialed(client, NewShared())
		u.Timeouts(10*time.Second, 10*time.Second)
		u.Begin(&message.Request{Method: []byte("GET"), Target: []byte("/"), Host: []byte("a")}, nil)
		if err := u.Last(); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Response([]byte("GET"), nil); err != nil {
			t.Fatal(err)
		}
		if stopped {
			u.Stop()
		}
		if _, err := u.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(err)
		}
		if got := u.Done(); got == stopped {
			t.Errorf("stopped %v: may be used again: %v", stopped, got)
		}
	}
}
