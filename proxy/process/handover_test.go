package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/testnet"
	"wayleave.dev/proxy/feed"
	"wayleave.dev/proxy/schema"
)

// An upgrade's agents hand the sockets over, and its proxies the clients: under load with
// old and new connections, plain and encrypted, no connection is refused and no request
// lost, time after time.
func TestAnUpgradeRefusesNobody(t *testing.T) {
	r := newRig(t)
	hosts := map[string]schema.Host{"a": route("a", "b", "c")}
	backends := map[string]schema.Backend{"b": r.backend("b", says("ok"))}
	certs := map[string]schema.Certificate{"c": r.ca.issue("c", "a")}
	shared := filepath.Join(t.TempDir(), "sockets.sock")
	serveKeeper := func(k *handoff.Keeper[schema.Socket]) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := k.Serve(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("keeper: %v", err)
			}
		}()
		stop = sync.OnceFunc(func() {
			cancel()
			<-done
		})
		t.Cleanup(stop)
		return stop
	}
	// pod starts an agent with its proxy, as a new pod of the node has them.
	pod := func(k *handoff.Keeper[schema.Socket]) (stop func()) {
		k.Path = shared
		if err := k.Inherit(t.Context()); err != nil {
			t.Fatal(err)
		}
		noKeeper := serveKeeper(k)
		f := r.agent(k)
		r.plan(f, hosts, backends, certs)
		dir := t.TempDir()
		noFeed := serveFeed(t, f, filepath.Join(dir, "proxy.sock"))
		noProxy := r.run(dir)
		return func() {
			noFeed()
			noKeeper()
			k.Keep(nil)
			noProxy()
		}
	}
	stop := pod(r.keeper)

	var asked, lost atomic.Int64
	var first atomic.Value
	var askers sync.WaitGroup
	done := make(chan struct{})
	load := func(c *http.Client, url string, post bool) {
		askers.Go(func() {
			for tick := time.NewTicker(4 * time.Millisecond); ; {
				select {
				case <-done:
					tick.Stop()
					return
				case <-tick.C:
				}
				asked.Add(1)
				var resp *http.Response
				var err error
				if post { // which no client sends again by itself
					resp, err = c.Post(url, "text/plain", strings.NewReader("x"))
				} else {
					resp, err = c.Get(url)
				}
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode != 200 {
						err = errors.New(resp.Status)
					}
				}
				if err != nil {
					lost.Add(1)
					first.CompareAndSwap(nil, fmt.Sprintf("%s: %v", url, err))
				}
			}
		})
	}
	for _, url := range []string{"http://a/", "https://a/"} {
		fresh := r.client(false)
		fresh.Transport.(*http.Transport).DisableKeepAlives = true
		load(fresh, url, true)
		load(r.client(false), url, true)
		load(r.client(true), url, true)
	}
	for range 5 {
		before := asked.Load()
		heir := feed.NewKeeper("", slog.New(slog.DiscardHandler))
		heir.Bind = func(k schema.Socket) (*os.File, error) { return nil, fmt.Errorf("%s is to be handed over", k) }
		next := pod(heir)
		testnet.Eventually(t, 10*time.Second, func() error { // both accept
			if asked.Load() < before+100 {
				return errors.New("no load")
			}
			return nil
		})
		stop()
		stop = next
	}
	close(done)
	askers.Wait()
	t.Logf("%d requests through 5 upgrades", asked.Load())
	if lost.Load() > 0 || asked.Load() < 500 {
		t.Errorf("%d of %d requests are lost, the first: %v", lost.Load(), asked.Load(), first.Load())
	}
}
