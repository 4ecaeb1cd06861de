package model

import (
	"iter"
	"net/netip"
	"time"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Pod is what Wayleave uses of a Pod. Pods that have ended are not kept.
type Pod struct {
	Name Name
	Node string
	// IPs are the pod's addresses; the node's for HostNetwork pods. A pod that was
	// scheduled and has not started has none yet.
	IPs         []netip.Addr
	HostNetwork bool
	// ClusterDNS says that the pod asks the cluster's DNS, with its search list.
	ClusterDNS bool
	// Searches are what dnsConfig adds to the search list.
	Searches []string
	// NDots is the resolver's option of that name.
	NDots int
	// UID tells the pod from a later one of the same name.
	UID string
	// Created says which of two pods that claim one address is the later.
	Created time.Time
	Labels  map[string]string
	// Ports are those that have a name, which policies may use.
	Ports []NamedPort
}

// NamedPort is a named containerPort of a pod.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// podByIP finds a pod of the pod network by its addresses.
var podByIP = statedb.Index[*Pod, netip.Addr]{
	Name: "ip",
	FromObject: func(p *Pod) index.KeySet {
		if p.HostNetwork || len(p.IPs) == 0 {
			return index.KeySet{}
		}
		keys := make([]index.Key, 0, len(p.IPs))
		for _, a := range p.IPs {
			keys = append(keys, index.NetIPAddr(a))
		}
		return index.NewKeySet(keys[0], keys[1:]...)
	},
	FromKey: index.NetIPAddr,
}

var pods = describe(descriptor[*Pod]{kind: PodKind, label: "Pod",
	name:    func(p *Pod) Name { return p.Name },
	indexes: []statedb.Indexer[*Pod]{podByIP}})

// PutPod sets a pod; the store owns it from now on.
func (w *Writer) PutPod(o *Pod) { put(w, pods, o) }

// Pod returns the pod of that name.
func (v Snapshot) Pod(n Name) (*Pod, bool) { return get(v, pods, n) }

// Pods yields all pods.
func (v Snapshot) Pods() iter.Seq[*Pod] { return all(v, pods) }

// PodsOf yields the pods of one namespace.
func (v Snapshot) PodsOf(namespace string) iter.Seq[*Pod] { return allIn(v, pods, namespace) }

// PodByIP returns a pod of the pod network that has the address.
func (v Snapshot) PodByIP(a netip.Addr) (*Pod, bool) {
	o, _, ok := tableOf(v.s, pods).Get(v.txn, podByIP.Query(a))
	return o, ok
}
