package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"wayleave.dev/model"
)

// serveHealth answers the kubelet's probes of this pod.
func (n *Node) serveHealth(ctx context.Context) error {
	l, err := listenUnix(HealthSocket)
	if err != nil {
		return err
	}
	mux := probes(func() error { return n.Ready(time.Now()) })
	n.Logs.Serve(mux)
	return serve(ctx, l, mux)
}

// probes answers /livez, and /readyz by what is missing.
func probes(ready func() error) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

var errNotRead = errors.New("not all objects of the API server have been read")

// Ready says why this agent is not: a standby is ready when it could take over at once, an owner when all loops have
// synced.
func (n *Node) Ready(now time.Time) error {
	if all := n.kinds().Required; n.Store.Synced()&all != all {
		return errNotRead
	}
	if !n.Owns() {
		for _, f := range Enabled[Successor](n.Config, n.Features) {
			if err := f.Prepared(now); err != nil {
				return err
			}
		}
		return nil
	}
	for name, s := range n.States() {
		if !s.Synced {
			if s.Error != "" {
				return fmt.Errorf("%s: %s", name, s.Error)
			}
			return fmt.Errorf("%s has not synced yet", name)
		}
	}
	return nil
}

// serveStatus answers `wayleave status` on the node.
func (n *Node) serveStatus(ctx context.Context) error {
	l, err := listenUnix(filepath.Join(n.Run, statusSocket))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	n.handleStatus(mux, n.Report)
	return serve(ctx, l, mux)
}

func (c *Core) handleStatus(mux *http.ServeMux, report func() Report) {
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(report()); err != nil {
			c.Log.Debug("status", "err", err)
		}
	})
}

// Report is the status of this node.
func (n *Node) Report() Report {
	snap := n.Store.Snapshot()
	r := n.Core.report(snap, model.ServiceKind, model.EndpointSliceKind, model.PodKind, model.NodeKind,
		model.NamespaceKind, model.NetworkPolicyKind, model.IngressKind)
	r.Node, r.Role, r.Kernel, r.Features = n.Name, "standby", n.Kernel.Words(), n.States()
	if n.Owns() {
		r.Role = "owner"
	}
	r.Facts = map[string][]string{}
	for _, f := range n.Features {
		if s, ok := f.(Reporter); ok {
			if lines := s.Facts(n, snap); len(lines) > 0 {
				r.Facts[f.Name()] = lines
			}
		}
		if l, ok := f.(Lister); ok {
			r.AddRows(l.List().Name, l.Rows(n, snap))
		}
	}
	n.setFacts(r.Facts)
	var wrong []string
	for _, name := range slices.Sorted(maps.Keys(r.Features)) {
		if s := r.Features[name]; s.Error != "" {
			wrong = append(wrong, name+": "+s.Error)
		} else if !s.Synced {
			wrong = append(wrong, name+": has not synced yet")
		}
	}
	r.Wrong = append(wrong, r.Wrong...)
	return r
}

// report is what agents and writers alike have in the status.
func (c *Core) report(snap model.Snapshot, kinds ...model.Kind) Report {
	r := Report{Version: c.Version, Mode: c.Config.DataPlane(), Routing: c.Config.Routing,
		Encryption: c.Config.Encryption, Objects: map[string]int{}, Off: c.off()}
	if c.Client != nil {
		r.APIServer = c.Client.Server + " (" + c.Client.From + ")"
	}
	for _, k := range kinds {
		r.Objects[k.String()] = snap.Count(k)
	}
	c.mu.Lock()
	for _, component := range slices.Sorted(maps.Keys(c.conditions)) {
		r.Wrong = append(r.Wrong, component+": "+c.conditions[component])
	}
	c.mu.Unlock()
	for _, p := range c.Problems.List() {
		if p.Note {
			r.Notes = append(r.Notes, p.Error())
		} else {
			r.Wrong = append(r.Wrong, p.Error())
		}
	}
	return r
}

// off lists the features that the settings switch off.
func (c *Core) off() (out []string) {
	for _, f := range c.Features {
		if !f.Enabled(c.Config) {
			out = append(out, f.Name())
		}
	}
	slices.Sort(out)
	return out
}
