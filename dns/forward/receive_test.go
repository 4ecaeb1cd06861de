package forward

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
)

// A length that a server announces over TCP costs nothing until its bytes come.
func TestAnAnnouncedLengthIsNotAllocated(t *testing.T) {
	const conns = 200
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	done := make(chan error, conns)
	var clients []net.Conn
	for range conns {
		client, server := net.Pipe()
		clients = append(clients, client)
		go func() {
			_, err := receive(server, make([]byte, 4096), false)
			done <- err
		}()
		if _, err := client.Write([]byte{0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if each := int64(after.HeapAlloc-before.HeapAlloc) / conns; each > 24<<10 {
		t.Errorf("%d bytes for each announced answer", each)
	}
	for _, c := range clients {
		c.Close()
	}
	for range conns {
		if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("an answer that is cut short: %v", err)
		}
	}
	// A whole one is read.
	client, server := net.Pipe()
	defer client.Close()
	go func() { _, _ = client.Write(append(binary.BigEndian.AppendUint16(nil, 3), "abc"...)) }()
	if m, err := receive(server, make([]byte, 4096), false); err != nil || string(m) != "abc" {
		t.Errorf("%q, %v", m, err)
	}
}
