package proxy

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"wayleave.dev/bench/internal/result"
)

const (
	manyRoutes  = 10000
	churnRoutes = 1000
	// churnRate is how many routes change per second; every tenth is probed.
	churnRate, lookAt = 200, 10
	probeEvery        = 2 * time.Millisecond
	// again is when a configuration that is not served is loaded again.
	again = 3 * time.Second
)

// some returns n routes to the first endpoint.
func some(n int) routes {
	r := make(routes, n)
	for i := range n {
		r[fmt.Sprintf("shop%05d.bench.example", i)] = endpointPort
	}
	return r
}

// held is a program's memory with many routes, in MiB.
type held struct {
	program                string
	resident, proportional float64
	// agent is the memory of the agent that feeds Wayleave's proxy; other programs' controllers are not part of the
	// test.
	agent float64
}

// memories starts each program with many routes, requests a tenth of them, and reads the memory.
func (k *kit) memories() (list []held) {
	k.t.Helper()
	r := some(manyRoutes)
	names := r.names()
	for _, name := range []string{"Wayleave", "nginx", "HAProxy", "ReverseProxy", "Caddy"} {
		c := k.startOne(name, r)
		if c == nil {
			continue
		}
		if err := k.answers(c, names[len(names)-1], "a", 60*time.Second); err != nil {
			k.t.Fatal(err)
		}
		for i := 0; i < len(names); i += 10 {
			if got, err := k.probe(c, names[i]); err != nil || got != "a" {
				k.t.Fatalf("%s: %s answers %q: %v", name, names[i], got, err)
			}
		}
		h := held{program: name}
		h.resident, h.proportional = c.memory()
		if c.agent != nil {
			h.agent, _ = (&contestant{process: c.agent.process}).memory()
		}
		k.t.Logf("%+v", h)
		list = append(list, h)
		c.stop()
	}
	return list
}

// churned is the result of changes of routes.
type churned struct {
	program       string
	p50, p99, max float64 // ms from a change to its first answer
	cpu           float64 // ms per change
	lost          int     // probes without status 200
	reloads       int
}

// churn changes all of 1,000 routes, one after the other, and measures how long each probed one takes to be served.
// Wayleave receives each change from its API server. The others have an ideal controller: it writes the complete
// configuration with all changes so far, loads it, waits until it is served, and starts again.
func (k *kit) churn(c *contestant, now routes, to int) churned {
	k.t.Helper()
	mark := map[int]string{endpointPort: "a", otherPort: "b"}[to]
	var mu sync.Mutex
	var waits []float64
	out := churned{program: c.name}
	pending, whole := routes{}, maps.Clone(now)
	more := make(chan struct{}, 1)
	var looking, applying sync.WaitGroup
	applying.Go(func() {
		for range more {
			mu.Lock()
			batch := pending
			pending = routes{}
			maps.Copy(whole, batch)
			mu.Unlock()
			if len(batch) == 0 {
				continue
			}
			send := whole
			if c.agent != nil {
				send = batch
			}
			if err := c.apply(send); err != nil {
				k.t.Errorf("%s: %v", c.name, err)
				continue
			}
			if out.reloads++; c.agent == nil {
				// HAProxy misses a signal that arrives while it restarts itself, so the signal is repeated.
				err := k.answers(c, batch.names()[0], mark, again)
				for tries := 0; err != nil && tries < 10; tries++ {
					out.reloads++
					err = errors.Join(c.apply(whole), k.answers(c, batch.names()[0], mark, again))
				}
				if err != nil {
					k.t.Error(err)
				}
			}
		}
	})
	before := c.spent() + c.agentSpent()
	start := time.Now()
	for i, name := range now.names() {
		time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / churnRate)))
		mu.Lock()
		pending[name] = to
		mu.Unlock()
		changed := time.Now()
		select {
		case more <- struct{}{}:
		default:
		}
		if i%lookAt != 0 {
			continue
		}
		looking.Go(func() {
			for {
				got, err := k.probe(c, name)
				if err == nil && got == mark {
					mu.Lock()
					waits = append(waits, time.Since(changed).Seconds()*1000)
					mu.Unlock()
					return
				}
				if err != nil {
					mu.Lock()
					out.lost++
					mu.Unlock()
				}
				if time.Since(changed) > 60*time.Second {
					k.t.Errorf("%s: %s is not served after 60 s: %v", c.name, name, err)
					return
				}
				time.Sleep(probeEvery)
			}
		})
	}
	looking.Wait()
	close(more)
	applying.Wait()
	out.cpu = (c.spent() + c.agentSpent() - before) / 1000 / float64(len(now))
	out.p50, out.p99, out.max = result.Percentile(waits, 50), result.Percentile(waits, 99),
		result.Percentile(waits, 100)
	for n := range now {
		now[n] = to
	}
	k.t.Logf("%+v", out)
	return out
}

func (c *contestant) agentSpent() float64 {
	if c.agent == nil {
		return 0
	}
	return (&contestant{process: c.agent.process}).spent()
}

// churns does so with each program, in turn.
func (k *kit) churns(rounds int) (list []churned) {
	k.t.Helper()
	type one struct {
		c *contestant
		r routes
	}
	var all []one
	for _, name := range []string{"Wayleave", "nginx", "HAProxy", "Caddy"} {
		r := some(churnRoutes)
		if c := k.startOne(name, r); c != nil {
			all = append(all, one{c, r})
			defer c.stop()
		}
	}
	for round := range rounds {
		for _, o := range all {
			to := otherPort
			if round%2 == 1 {
				to = endpointPort
			}
			list = append(list, k.churn(o.c, o.r, to))
		}
	}
	return list
}
