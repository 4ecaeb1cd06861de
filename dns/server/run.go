package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"wayleave.dev/dns/frames"
	"wayleave.dev/dns/schema"
	"wayleave.dev/dns/zone"
	"wayleave.dev/internal/buildinfo"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/logging"
	"wayleave.dev/internal/scrape"
	"wayleave.dev/internal/statefile"
	"wayleave.dev/model"
)

// Config is the configuration of the server process.
type Config struct {
	// Socket is the agent's.
	Socket string
	// StateFile stores the last snapshot, which is served after a start without an agent.
	StateFile string
	// HealthSocket serves /readyz, /livez and /metrics.
	HealthSocket string
	// MetricsSocket is the agent's, for the metrics; empty for none. Version is Wayleave's.
	MetricsSocket, Version string
	// Hung is called when the loop of a socket has been stuck for a second. It should end the process at once. Nil
	// disables the watchdog.
	Hung func(schema.Socket)
	Log  *slog.Logger
	// Logs are the settings of Log, which the agent tells; nil keeps them.
	Logs *logging.Log
}

// saved is the content of the state file.
type saved struct {
	Version  int             `json:"version"`
	Settings schema.Settings `json:"settings"`
	Entries  []frames.Pair   `json:"entries"`
	// Guests are as in frames.Update.
	Guests []netip.Prefix `json:"guests,omitempty"`
}

// process is the running server with its state on disk.
type process struct {
	Config
	zone   *zone.Zone
	server *Server
	known  bool // has a snapshot, from the agent or the disk
	dirty  bool // differs from the disk
	guests []netip.Prefix
	logs   logging.Source
}

// Run answers queries until ctx ends: it loads its last snapshot from disk, then follows the agent, and reconnects
// after each disconnect.
func Run(ctx context.Context, c Config) error {
	reg := prometheus.NewRegistry()
	buildinfo.Register(reg, c.Version)
	zone := zone.New()
	p := &process{Config: c, zone: zone, server: New(zone, reg, c.Log), logs: logging.Source{Log: c.Logs}}
	ready := make(chan struct{})
	isReady := sync.OnceFunc(func() { close(ready) })
	p.tidy()
	if err := p.load(); err != nil {
		c.Log.Warn("cannot read the last snapshot", "err", err)
	}
	if err := p.health(ctx, reg, ready); err != nil {
		return err
	}
	if c.MetricsSocket != "" {
		go scrape.Serve(ctx, c.MetricsSocket, reg)
	}
	defer p.server.forward.Close()
	defer p.server.Keep(nil)
	if c.Hung != nil {
		go p.server.watch(ctx, c.Hung)
	}
	client := handoff.Client[schema.Socket, frames.Update, frames.News]{Protocol: frames.Handoff(), Socket: c.Socket,
		Hello: func() (handoff.Hello[schema.Socket], []*os.File) {
			return handoff.Hello[schema.Socket]{Holds: p.server.Sockets(), Known: p.known}, nil
		},
		Take: func(u frames.Update, files []*os.File) {
			p.take(u, files)
			// Without a socket it answers no query.
			if p.known && len(p.server.Sockets()) > 0 || u.Rest {
				isReady()
			}
		},
		Report:      func() frames.News { return frames.News{Lacks: p.server.forward.Lacks()} },
		Same:        func(a, b frames.News) bool { return maps.EqualFunc(a.Lacks, b.Lacks, slices.Equal[[]string]) },
		ReportEvery: newsEvery,
		Quiet:       p.save,
		Ended: func() {
			// Without an agent the server would not learn when an address is assigned to another pod.
			p.server.SetCallers(nil)
			p.save()
		},
		Lost: func(err error) { c.Log.Warn("no agent; answering from the last snapshot", "err", err) },
	}
	return client.Run(ctx)
}

// newsEvery is how often changed limitations of upstream servers are sent to the agent.
const newsEvery = 2 * frames.NewsPause

// take applies an update. The files remain the caller's.
func (p *process) take(u frames.Update, files []*os.File) {
	if u.Rest {
		p.server.Keep(nil)
	}
	if u.Settings != nil {
		p.logs.Set(u.Settings.Log)
		p.server.Configure(*u.Settings)
		p.dirty = true
	}
	if u.Callers != nil {
		p.server.SetCallers(u.Callers)
	}
	if u.Guests != nil {
		p.server.SetGuests(*u.Guests)
		p.guests, p.dirty = *u.Guests, true
	}
	if u.Whole {
		entries := make(map[model.Name]schema.Records, len(u.Set))
		for _, e := range u.Set {
			entries[e.Key] = e.Records
		}
		p.zone.Reset(entries)
		p.known, p.dirty = true, true
	} else {
		for _, e := range u.Set {
			p.zone.Set(e.Key, &e.Records)
		}
		for _, k := range u.Deleted {
			p.zone.Set(k, nil)
		}
		p.dirty = p.dirty || len(u.Set)+len(u.Deleted) > 0
	}
	for i, k := range u.Passed {
		if i >= len(files) {
			break
		}
		if err := p.adopt(k, files[i]); err != nil {
			p.Log.Error("a passed socket cannot be used", "socket", k, "err", err)
		}
	}
	if u.Sockets != nil {
		p.server.Keep(u.Sockets)
	}
}

func (p *process) adopt(k schema.Socket, f *os.File) error {
	switch k.Network {
	case "udp":
		c, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		p.server.Listen(k, nil, c)
	case "tcp":
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		p.server.Listen(k, l, nil)
	default:
		return fmt.Errorf("network %q is unknown", k.Network)
	}
	return nil
}

// tidy removes the leftovers of a process that ended while it wrote: the folder is small.
func (p *process) tidy() {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(p.StateFile), snapshotTemp))
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	if err != nil {
		p.Log.Warn("cannot remove an unfinished snapshot", "err", err)
	}
}

// load loads the last snapshot, or the previous one if the last is damaged.
func (p *process) load() error {
	s, err := statefile.Read(p.StateFile, func(s saved) error {
		if s.Version != frames.Version {
			return fmt.Errorf("version %d, want %d", s.Version, frames.Version)
		}
		return nil
	})
	if s.Version == 0 {
		return err
	}
	p.take(frames.Update{Settings: &s.Settings, Guests: &s.Guests, Whole: true, Set: s.Entries}, nil)
	p.dirty = false
	return err
}

// save writes the snapshot atomically.
func (p *process) save() {
	if !p.dirty || !p.known {
		return
	}
	s := saved{Version: frames.Version, Settings: *p.server.settings.Load(), Guests: p.guests}
	for k, e := range p.zone.Entries() {
		s.Entries = append(s.Entries, frames.Pair{Key: k, Records: e})
	}
	if err := statefile.Write(p.StateFile, s); err != nil {
		p.Log.Warn("cannot save the snapshot", "err", err)
		return
	}
	p.dirty = false
}

// snapshotTemp is the pattern of files that earlier versions left.
const snapshotTemp = ".snapshot-*"

// health serves the probes.
func (p *process) health(ctx context.Context, reg *prometheus.Registry, ready <-chan struct{}) error {
	if err := os.Remove(p.HealthSocket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("health socket: %w", err)
	}
	l, err := net.Listen("unix", p.HealthSocket)
	if err != nil {
		return fmt.Errorf("health socket: %w", err)
	}
	if err := os.Chmod(p.HealthSocket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("health socket: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-ready:
			_, _ = io.WriteString(w, "ok\n")
		default:
			http.Error(w, "no names or no socket yet", http.StatusServiceUnavailable)
		}
	})
	p.Logs.Serve(mux)
	mux.HandleFunc("/query", p.server.handleQuery)
	mux.HandleFunc("/log", p.server.handleLog)
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	go func() {
		if err := srv.Serve(l); err != nil && ctx.Err() == nil {
			p.Log.Error("health socket", "err", err)
		}
	}()
	return nil
}
