package service

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
	"wayleave.dev/service/ipvs"
)

// Rendering is what Render prints.
type Rendering struct {
	// Mode is the data plane, and Scheduler that of the mode ipvs.
	Mode, Scheduler string
	// Node is the node to render for; empty for none.
	Node string
}

// Check says what is wrong with the mode and the scheduler.
func (r Rendering) Check() error {
	if _, err := dataplane.ByName(r.Mode); err != nil {
		return fmt.Errorf("--mode: %w", err)
	}
	if !slices.Contains(ipvs.Schedulers(), r.Scheduler) {
		return fmt.Errorf("--scheduler: found %q; allowed: %s", r.Scheduler, strings.Join(ipvs.Schedulers(), ", "))
	}
	return nil
}

// Render writes what the Services of a snapshot would become in the kernel. It changes nothing. Problems of objects are
// written to warnings.
func (r Rendering) Render(snap model.Snapshot, out, warnings io.Writer) error {
	if err := r.Check(); err != nil {
		return err
	}
	warn := func(problems []model.Problem) {
		for _, p := range problems {
			fmt.Fprintln(warnings, "warning:", p.Error())
		}
	}
	local, ok, problems := service.MakeNodeFacts(snap, r.Node)
	if r.Node != "" && !ok {
		return fmt.Errorf("--node: the files have no Node %q", r.Node)
	}
	warn(problems)
	planner := &service.Planner{Options: PlanOptions(r.Node, config.Default())}
	plans := map[model.Name]service.Plan{}
	for s := range snap.Services() {
		p, ok, problems := planner.Plan(snap, s.Name)
		warn(problems)
		if ok {
			plans[s.Name] = p
		}
	}
	kind, err := dataplane.ByName(r.Mode)
	if err == nil {
		_, err = io.WriteString(out, kind.Text(plans, local, r.Scheduler))
	}
	return err
}
