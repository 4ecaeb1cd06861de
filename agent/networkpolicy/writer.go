package networkpolicy

import (
	"context"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/model"
	"wayleave.dev/networkpolicy"
)

// judgeAfter is how long policies and pods must have been at rest before a policy without
// effect is reported: a policy often comes before its pods.
const judgeAfter = 10 * time.Second

// WriterKinds implements agent.Writer.
func (f *Feature) WriterKinds(config.Config) agent.Kinds {
	return agent.Kinds{Required: model.NetworkPolicyKind | model.PodKind}
}

// Write implements agent.Writer.
func (f *Feature) Write(c *agent.Cluster) []agent.Part {
	return []agent.Part{{Name: f.Name(), Run: func(ctx context.Context) error { return judge(ctx, c) }}}
}

// judge reports policies that have no effect.
func judge(ctx context.Context, c *agent.Cluster) error {
	if err := c.Store.WaitSynced(ctx, networkpolicy.PlannerKinds|model.NodeKind); err != nil {
		return err
	}
	watch, err := c.Store.Watch(networkpolicy.PlannerKinds)
	if err != nil {
		return err
	}
	defer watch.Close()
	told := map[model.Name]bool{}
	defer func() {
		for n := range told {
			c.Problems.Set("networkpolicy", n.String(), nil)
		}
	}()
	all := networkpolicy.NewJudge()
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
		for n := range all.Concerned(snap, first, later) {
			found := all.Problems(snap, n)
			if len(found) > 0 || told[n] {
				c.Problems.Set("networkpolicy", n.String(), found)
			}
			if told[n] = len(found) > 0; !told[n] {
				delete(told, n)
			}
		}
	}
}
