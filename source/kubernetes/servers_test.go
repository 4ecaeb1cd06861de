package kubernetes

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/internal/testnet"
	"wayleave.dev/model"
)

// The other API servers are tried when the configured one is away, also after a
// restart, and also when the cluster says that there is none.
func TestAnotherAPIServerIsTried(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other := netip.MustParseAddrPort(l.Addr().String())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := closed.Addr().String()
	closed.Close()

	store, err := model.NewStore()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s := Servers{Endpoints: &Endpoints{}, Store: store, File: filepath.Join(t.TempDir(), "servers")}
	s.Load()
	if _, err := s.Endpoints.dial(t.Context(), "tcp", gone); err == nil {
		t.Fatal("connected to nobody")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	put := func(ready bool) {
		err := store.Write(func(w *model.Writer) {
			w.PutEndpointSlice(&model.EndpointSlice{Name: model.Name{Namespace: "default", Name: "kubernetes"},
				Service:   "kubernetes",
				Ports:     []model.EndpointPort{{Name: "https", Protocol: model.TCP, Port: other.Port()}},
				Endpoints: []model.Endpoint{{Addr: other.Addr(), Ready: ready}}})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	reach := func(e *Endpoints) error {
		c, err := e.dial(t.Context(), "tcp", gone)
		if err == nil {
			c.Close()
		}
		return err
	}
	put(true)
	testnet.Eventually(t, 5*time.Second, func() error { return reach(s.Endpoints) })
	put(false)
	restarted := Servers{Endpoints: &Endpoints{}, Store: store, File: s.File}
	testnet.Eventually(t, 5*time.Second, func() error {
		restarted.Load()
		return reach(restarted.Endpoints)
	})
	if err := reach(s.Endpoints); err != nil {
		t.Errorf("an empty list was believed: %v", err)
	}
	if err := os.WriteFile(s.File, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	restarted.Tell = func(_ string, e error) { err = e }
	restarted.Load()
	if err == nil || !strings.Contains(err.Error(), s.File) {
		t.Errorf("a broken file: %v", err)
	}
	if err := reach(restarted.Endpoints); err != nil {
		t.Errorf("a broken file took what was known: %v", err)
	}
}
