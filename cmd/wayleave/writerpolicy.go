package main

import (
	"context"
	"time"

	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// judgeAfter is how long policies and pods must have been at rest before a policy without
// effect is reported: a policy often comes before its pods.
const judgeAfter = 10 * time.Second

// judgePolicies has policies that have no effect told by Events.
func (w *writer) judgePolicies(ctx context.Context) error {
	if err := w.store.WaitSynced(ctx, networkpolicy.PlannerKinds|model.NodeKind); err != nil {
		return err
	}
	watch, err := w.store.Watch(networkpolicy.PlannerKinds)
	if err != nil {
		return err
	}
	defer watch.Close()
	told := map[model.Name]bool{}
	defer func() {
		for n := range told {
			w.problems.Set("networkpolicy", n.String(), nil)
		}
	}()
	judge := networkpolicy.NewJudge()
	for {
		_, first, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(judgeAfter):
		}
		snap, later, _ := watch.Poll()
		for n := range judge.Concerned(snap, first, later) {
			found := judge.Problems(snap, n)
			if len(found) > 0 || told[n] {
				w.problems.Set("networkpolicy", n.String(), found)
			}
			if told[n] = len(found) > 0; !told[n] {
				delete(told, n)
			}
		}
	}
}
