package loadbalancer

import (
	"context"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/model"
	"wayleave.dev/writeback"
)

// byDefault waits until it is decided whether Wayleave gives addresses to Services without a class. It reports another
// load balancer that does.
func byDefault(ctx context.Context, c *agent.Cluster) (bool, error) {
	const topic = "another load balancer"
	if !c.Config.LoadBalancer.Default {
		return false, nil
	}
	choice := writeback.BalancerChoice{Client: c.Client.Interface, Dynamic: c.Client.Dynamic,
		TakeOver: c.Config.LoadBalancer.TakeOver}
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		own, rival, err := choice.Decide(ctx)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if c.SetCondition("loadbalancer", err); err == nil {
			c.Problems.Set("loadbalancer", topic, left(own, rival))
			c.SetFact("loadbalancer", topic, "")
			if !own {
				c.SetFact("loadbalancer", topic, "Services without a class are left to pod "+rival.String()+
					"; to switch over, see docs/migrate/README.md")
			}
			return own, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// left is what is said about a load balancer that keeps the Services without a class.
func left(own bool, rival model.Name) []model.Problem {
	if own {
		return nil
	}
	return []model.Problem{{Kind: "Pod", Object: rival, Note: true, Event: "AnotherLoadBalancer",
		Reason: "it is of another load balancer, which keeps the Services without a class; Wayleave serves those of " +
			"class wayleave.dev/l2. To switch over, set loadbalancer.takeOver to true, or remove that load balancer " +
			"and restart deployment/wayleave-writer (docs/migrate/README.md)"}}
}
