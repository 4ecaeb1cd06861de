package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/internal/testnet"
)

// An upgrade's two servers of a node hand over: no query is lost, though the old one
// ends while they come in.
func TestAnUpgradeLosesNoQuery(t *testing.T) {
	r := newRig(t)
	r.agent()
	stop := r.server()
	r.expect("udp", "10.7.0.1:53", backendName, "NOERROR: A 10.96.100.50")
	var asked, lost atomic.Int64
	var first atomic.Value
	var askers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		askers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				asked.Add(1)
				if _, err := r.ask("udp", "", "10.7.0.1:53", backendName, dns.TypeA); err != nil {
					lost.Add(1)
					first.CompareAndSwap(nil, err.Error())
				}
			}
		})
	}
	for range 8 {
		r.dir = t.TempDir() // the new pod's
		r.agent()
		next := r.server()
		testnet.Eventually(t, 10*time.Second, func() error {
			return ready(filepath.Join(r.dir, "health.sock"))
		})
		stop()
		stop = next
	}
	close(done)
	askers.Wait()
	if lost.Load() > 0 || asked.Load() == 0 {
		t.Errorf("%d of %d queries are lost, the first: %v", lost.Load(), asked.Load(), first.Load())
	}
}

// ready asks a server's probe.
func ready(socket string) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
	resp, err := client.Get("http://dns/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz: %s", resp.Status)
	}
	return nil
}
