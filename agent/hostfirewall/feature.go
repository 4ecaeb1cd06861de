// Package hostfirewall has the host's own firewall let the packets of features pass.
package hostfirewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/model"
)

// Owner is in the comments of the rules in chains of others.
const Owner = "listeners"

// Feature keeps the host's firewall open for what other features admit (agent.Admitter): listeners that take packets of
// the cluster alone, and what Services translate. Each listener drops strangers by itself. Ports for clients outside
// are the administrator's to open.
type Feature struct{}

var (
	_ agent.Feature     = Feature{}
	_ agent.Owner       = Feature{}
	_ agent.Uninstaller = Feature{}
)

// New makes the feature of one process.
func New() Feature { return Feature{} }

// Name implements agent.Feature.
func (Feature) Name() string { return "hostfirewall" }

// Enabled implements agent.Feature: there is no setting.
func (Feature) Enabled(config.Config) bool { return true }

// Kinds implements agent.Feature.
func (Feature) Kinds(config.Config) agent.Kinds { return agent.Kinds{} }

// Own implements agent.Owner.
func (Feature) Own(n *agent.Node) []agent.Part {
	return []agent.Part{{Name: "firewall", Run: func(ctx context.Context) error { return keepOpen(ctx, n) }}}
}

// Uninstall implements agent.Uninstaller.
func (Feature) Uninstall(ctx context.Context, h *agent.Host) error {
	_, err := h.Firewall.Withdraw(ctx, Owner)
	return err
}

// Remains implements agent.Uninstaller.
func (Feature) Remains(ctx context.Context, h *agent.Host) ([]string, error) {
	left, err := h.Firewall.Accepting(ctx, Owner)
	for i, chain := range left {
		left[i] = "rules in " + chain
	}
	return left, err
}

// Passes are what features admit now, one for each hook.
func Passes(n *agent.Node, snap model.Snapshot) (out []firewall.Pass) {
	for _, hook := range []firewall.Hook{firewall.Input, firewall.Forward} {
		all := firewall.Pass{Owner: Owner, Hook: hook}
		for _, f := range agent.Enabled[agent.Admitter](n.Config, n.Features) {
			for _, p := range f.Admits(n, snap) {
				if p.Hook == hook {
					all.Rules = append(all.Rules, p.Rules...)
					all.Samples = append(all.Samples, p.Samples...)
				}
			}
		}
		out = append(out, all)
	}
	return out
}

// rules are those of all passes.
func rules(passes []firewall.Pass) (out []firewall.Accepted) {
	for _, p := range passes {
		out = append(out, p.Rules...)
	}
	return out
}

// lookAgain is how often the host's firewall is looked at, beside when others change it.
const lookAgain = 30 * time.Second

// keepOpen follows the host's firewall and what features admit.
func keepOpen(ctx context.Context, n *agent.Node) error {
	changed, err := n.Firewall.WatchOthers(ctx)
	if err != nil {
		return err
	}
	w, err := n.Store.Watch(model.ServiceKind | model.NodeKind)
	if err != nil {
		return err
	}
	defer w.Close()
	var last []firewall.Accepted
	look := true
	for ctx.Err() == nil {
		snap, _, ready := w.Poll()
		now, start := Passes(n, snap), time.Now()
		if look || !slices.Equal(rules(now), last) {
			found, err := admit(ctx, n.Firewall, now)
			if ctx.Err() != nil {
				break
			}
			n.SetCondition("firewall of the host", err)
			if last = rules(now); err == nil {
				report(n, found)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(200*time.Millisecond, 10*time.Since(start))):
		}
		again, cancel := context.WithTimeout(ctx, lookAgain)
		select {
		case <-changed:
			look = true
		case <-ready.C(again):
			look = again.Err() != nil // or a Service or Node changed, most of which change no rule
		case <-again.Done():
			look = true
		}
		cancel()
	}
	return ctx.Err()
}

func admit(ctx context.Context, host firewall.Firewall, passes []firewall.Pass) (all firewall.Found, err error) {
	var errs []error
	for _, p := range passes {
		found, err := host.Admit(ctx, p)
		all, errs = all.Merge(found), append(errs, err)
	}
	return all, errors.Join(errs...)
}

// report says in the status, under the first feature that admits packets, which chains accept them, and which rules
// drop them all the same.
func report(n *agent.Node, found firewall.Found) {
	line := ""
	if len(found.Accepted) > 0 {
		line = "the host's firewall drops packets of Services or to listeners of Wayleave; they are accepted " +
			"in its chains " + strings.Join(found.Accepted, ", ")
	}
	if all := agent.Enabled[agent.Admitter](n.Config, n.Features); len(all) > 0 {
		n.SetFact(all[0].(agent.Feature).Name(), "firewall", line)
	}
	var problems []model.Problem
	for _, d := range found.Drops {
		problems = append(problems, n.Problem("firewall",
			fmt.Sprintf("the host's rule %q drops packets of Services, or to DNS or heartbeats of this "+
				"node; let the networks of pods and nodes pass in it (firewalld: firewall-cmd --permanent "+
				"--zone=trusted --add-source=CIDR)", d)))
	}
	n.Problems.Set("firewall", "listeners", problems)
}
