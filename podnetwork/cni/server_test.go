package cni

import (
	"sync"
	"testing"
	"time"

	"wayleave.dev/podnetwork/ipam"
)

// Calls for one interface wait for each other, and none for ever.
func TestOneCallPerInterfaceAtATime(t *testing.T) {
	var s Server
	key := ipam.Key{Container: "a", Interface: "eth0"}
	var wg sync.WaitGroup
	inside := 0
	for range 8 {
		wg.Go(func() {
			for range 20000 {
				unlock := s.lock(key)
				inside++ // the race detector judges
				unlock()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("a call waits for ever")
	}
	if inside != 160000 || len(s.busy) != 0 {
		t.Errorf("%d calls, %d interfaces are still remembered", inside, len(s.busy))
	}
}
