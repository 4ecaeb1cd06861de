package agent

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/config"
	"wayleave.dev/internal/logging"
	"wayleave.dev/model"
	"wayleave.dev/reconcile"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/writeback"
)

// Core is what an agent and a writer alike give to features: the settings, the objects, and the places where a feature
// says how it is. Its methods are safe for concurrent use.
type Core struct {
	Config   config.Config
	Version  string
	Features []Feature
	Log      *slog.Logger
	// Logs are the settings of Log, which children follow; nil in tests.
	Logs     *logging.Log
	Store    *model.Store
	Client   *kubesource.Client
	Problems *writeback.Problems
	metrics  *metrics

	mu         sync.Mutex
	healths    map[string]*reconcile.Health
	conditions map[string]string
	facts      map[string]string
}

// NewCore makes a Core without a client.
func NewCore(log *slog.Logger, store *model.Store, cfg config.Config, features []Feature) *Core {
	return &Core{Config: cfg, Features: features, Log: log, Store: store, Problems: writeback.NewProblems(log),
		metrics: newMetrics(prometheus.NewRegistry()), healths: map[string]*reconcile.Health{},
		conditions: map[string]string{}, facts: map[string]string{}}
}

// SetCondition keeps what is wrong with a component outside of the loops, for the status; nil takes it back.
func (c *Core) SetCondition(component string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.conditions, component)
		return
	}
	if c.conditions[component] != err.Error() {
		c.Log.Warn(component, "err", err)
	}
	c.conditions[component] = err.Error()
}

// SetFact keeps a line about a feature for the status; an empty one takes it back. topic tells lines of one feature
// apart.
func (c *Core) SetFact(feature, topic, line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.facts[feature+" "+topic] = line
}

// Fact returns the line that SetFact keeps.
func (c *Core) Fact(feature, topic string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.facts[feature+" "+topic]
}

func (c *Core) setFacts(all map[string][]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(c.facts)) {
		feature, _, _ := strings.Cut(key, " ")
		if line := c.facts[key]; line != "" {
			all[feature] = append(all[feature], line)
		}
	}
}

// Health returns the health of a loop, which is in the status and in metrics under its name. observe is told of each
// application, too: whether it was a full sync, and how long it took.
func (c *Core) Health(loop string, observe ...func(full bool, took time.Duration)) *reconcile.Health {
	h := reconcile.NewHealth(c.metrics.observer(loop, observe...), c.metrics.counter(loop))
	c.SetHealth(loop, h)
	return h
}

// SetHealth has a loop's health in the status.
func (c *Core) SetHealth(loop string, h *reconcile.Health) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.healths[loop] = h
}

// States are the states of all loops.
func (c *Core) States() map[string]reconcile.State {
	c.mu.Lock()
	healths := maps.Clone(c.healths)
	c.mu.Unlock()
	out := map[string]reconcile.State{}
	for name, h := range healths {
		out[name] = h.State()
	}
	return out
}

// ReportTo has the problems of a loop's keys kept under the finder's name, for reconcile.Loop.
func (c *Core) ReportTo(finder string) func(key string, problems []model.Problem) {
	return func(key string, problems []model.Problem) { c.Problems.Set(finder, key, problems) }
}

// source watches the API server. Problems of Ingresses are left to who plans them, since only some are ours.
func (c *Core) source(node string, kinds Kinds) *kubesource.Source {
	all := kinds.Required | kinds.Watched
	s := &kubesource.Source{Client: c.Client.Interface, Store: c.Store, NodeName: node, AllPods: kinds.AllPods,
		Policies: all&model.NetworkPolicyKind != 0, Ingresses: all&model.IngressKind != 0, Log: c.Log,
		Report: func(kind string, n model.Name, problems []model.Problem) {
			if kind != model.IngressKind.String() {
				c.Problems.Set("source", kind+" "+n.String(), problems)
			}
		}}
	if all&(model.AddressPoolKind|model.BGPPeerKind) != 0 {
		s.Dynamic = c.Client.Dynamic
	}
	s.BGP, s.PeerSecrets = all&model.BGPPeerKind != 0, all&model.PeerSecretKind != 0
	return s
}

// baseKinds are read whatever is enabled.
const baseKinds = model.ServiceKind | model.EndpointSliceKind | model.NodeKind | model.NamespaceKind
