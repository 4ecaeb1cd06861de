package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wayleave.dev/agent/report"
	"wayleave.dev/config"
	"wayleave.dev/kernel/firewall"
	"wayleave.dev/model"
	"wayleave.dev/statusserver"
)

// Feature is one feature of Wayleave, such as the service proxy or the cluster DNS. This is what every feature has;
// what only some have are the optional interfaces below, which a feature implements as it needs them.
//
// A process makes its own features (features.All), one of each, and calls their methods from one goroutine, unless a
// method says otherwise. The parts that they return run concurrently.
type Feature interface {
	// Name is the feature's name in the settings, the status and metrics, such as "dns".
	Name() string
	// Enabled says whether the settings switch the feature on. A feature without such a setting is always enabled.
	Enabled(config.Config) bool
	// Kinds are the kinds of objects that the feature reads on a node. They are read only while it is enabled.
	Kinds(config.Config) Kinds
}

// Kinds are kinds of objects that a feature reads from the API server. Services, EndpointSlices, Nodes and Namespaces
// are read and required without being named.
type Kinds struct {
	// Required are the kinds that must have been read before anything is changed: a missing object would be taken for
	// a deleted one.
	Required model.Kind
	// Watched are further kinds, which may become known later.
	Watched model.Kind
	// AllPods has the Pods of all nodes read, in place of those of this node.
	AllPods bool
}

func (k Kinds) join(o Kinds) Kinds {
	return Kinds{k.Required | o.Required, k.Watched | o.Watched, k.AllPods || o.AllPods}
}

// Part is work of a feature that runs until its context ends. A part that returns an error before ends the process,
// which starts again.
type Part struct {
	// Name is for the error.
	Name string
	Run  func(context.Context) error
}

// The parts of a feature in the agent of a node. While an agent is upgraded, two agents of a node run: one owns the
// node, and one stands by to take over.
type (
	// Yielder is a feature that leaves its work to another program that does it on this node already: it switches
	// itself off in the node's settings, before anything else of it is called, and says so. It must not do so where
	// Wayleave has done that work before.
	Yielder interface {
		Yield(*Node)
	}
	// Preparer is a feature that is set up before any part runs, whether it is enabled or not. An error ends the
	// agent before it takes the node over, so the running agent keeps it.
	Preparer interface {
		Prepare(context.Context, *Node) error
	}
	// Runner is a feature with parts that run in every agent, as the owner of the node and as a standby. They must
	// not change the node.
	Runner interface {
		Run(*Node) []Part
	}
	// Idler is a feature with parts that run in every agent while the feature is disabled.
	Idler interface {
		Idle(*Node) []Part
	}
	// Owner is a feature with parts that change the node, and run only in the agent that owns it.
	Owner interface {
		Own(*Node) []Part
	}
	// Leaver is a feature with parts that run in the owner of the node while the feature is disabled. They remove
	// what the feature left while it was enabled.
	Leaver interface {
		Leave(*Node) []Part
	}
	// Standby is a feature with parts that run while another agent owns the node, and have ended when this one does.
	// The agent goes on when one fails.
	Standby interface {
		StandBy(*Node) []Part
	}
	// Successor is a feature that prepares to follow the owner of the node without a gap.
	Successor interface {
		// Succeed returns parts that start when this agent stands by, or owns the node at once, and go on when it
		// owns the node. They have ended when it gives the node up. standby says that another agent owns the node now.
		Succeed(n *Node, standby bool) []Part
		// Prepared says what a standby lacks to follow without a gap, nil if nothing. Safe for concurrent use.
		Prepared(now time.Time) error
	}
)

// What a feature shows and reports. These methods are called whether the feature is enabled or not, from any goroutine.
type (
	// Reporter is a feature with lines about itself in `wayleave status`.
	Reporter interface {
		Facts(*Node, model.Snapshot) []string
	}
	// Lister is a feature with a table in `wayleave status`.
	Lister interface {
		List() List
		// Rows is the content of the table, to be encoded as a JSON array; nil for no rows.
		Rows(*Node, model.Snapshot) any
	}
	// Metered is a feature with metrics beside those that each loop has. They are asked for once, after Prepare.
	Metered interface {
		Metrics(*Node) []prometheus.Collector
	}
	// Supervising is a feature that keeps processes running beside the agent.
	Supervising interface {
		// Processes says whether each of them runs, by name; nil before the first start.
		Processes() map[string]bool
	}
	// Scraped is a feature whose process in another container of the pod has metrics. That container runs also while
	// the feature is disabled.
	Scraped interface {
		Scraped() statusserver.Source
	}
)

// List is a table that `wayleave status --NAME` prints.
type List = report.List

// The parts of a feature in the cluster-wide writer, of which one replica is the leader.
type (
	// Writer is a feature that writes cluster-wide objects, or finds what is wrong with objects.
	Writer interface {
		// WriterKinds are the kinds that the feature reads in the writer.
		WriterKinds(config.Config) Kinds
		// Write returns the parts that the leader runs while the feature is enabled.
		Write(*Cluster) []Part
	}
	// NodeReporter is a feature that has nodes report problems of objects which the writer cannot find itself. Every
	// node reports the problems of its own Node object without that. Safe for concurrent use.
	NodeReporter interface {
		// Reports says whether this node is to report the problem.
		Reports(n *Node, p model.Problem) bool
		// Accepts says whether the writer believes the node.
		Accepts(c *Cluster, node string, p model.Problem) bool
	}
)

// Uninstaller is a feature that leaves something on a node: in the kernel, or outside of the folders of Wayleave. Both
// methods get a node without an agent, and whatever settings were in force.
type Uninstaller interface {
	// Uninstall removes everything, whatever is missing already.
	Uninstall(context.Context, *Host) error
	// Remains names what is left; nothing after Uninstall.
	Remains(context.Context, *Host) ([]string, error)
}

// Where features meet. A feature calls these by Enabled, and never another feature's package.
type (
	// Admitter is a feature whose packets the host's own firewall must let pass.
	Admitter interface {
		// Admits returns the packets by hook; the field Owner is not used.
		Admits(*Node, model.Snapshot) []firewall.Pass
	}
	// LeaseFollower is told which addresses of this node are given to which pods: at first, and whenever that
	// changes, before a new pod has its address. Safe for concurrent use.
	LeaseFollower interface {
		Leases(map[netip.Addr]model.Name)
	}
	// Isolator holds a new pod back until the rules for its addresses are in the kernel. Safe for concurrent use.
	Isolator interface {
		Isolate(context.Context, []netip.Addr) error
	}
	// ProxyFollower is told the addresses that the node's ingress proxy sends from, at first and whenever they
	// change. Safe for concurrent use.
	ProxyFollower interface {
		ProxyAddresses([]netip.Addr)
	}
)

// Enabled returns the enabled features that implement T, in the order of the registry.
func Enabled[T any](cfg config.Config, all []Feature) (out []T) {
	for _, f := range all {
		if t, ok := f.(T); ok && f.Enabled(cfg) {
			out = append(out, t)
		}
	}
	return out
}

// having returns all features that implement T, enabled or not.
func having[T any](all []Feature) (out []T) {
	for _, f := range all {
		if t, ok := f.(T); ok {
			out = append(out, t)
		}
	}
	return out
}
