package model

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Kind is one of the tables, and a bit in a set of them.
type Kind uint16

// The kinds of objects that the store holds. ServiceKind covers EndpointSlices
// where a Watcher is concerned: both change the same service.
const (
	ServiceKind Kind = 1 << iota
	EndpointSliceKind
	PodKind
	NodeKind
	NamespaceKind
	AddressPoolKind
	NetworkPolicyKind
	IngressKind
	IngressClassKind
	SecretKind
	ServiceCIDRKind
)

// allKinds are all of them.
const allKinds = ServiceKind | EndpointSliceKind | PodKind | NodeKind | NamespaceKind | AddressPoolKind |
	NetworkPolicyKind | IngressKind | IngressClassKind | SecretKind | ServiceCIDRKind

// AllKinds is the set of all kinds.
func AllKinds() Kind { return allKinds }

// String is the API's name of the kind.
func (k Kind) String() string {
	switch k {
	case ServiceKind:
		return "Service"
	case EndpointSliceKind:
		return "EndpointSlice"
	case PodKind:
		return "Pod"
	case NodeKind:
		return "Node"
	case NamespaceKind:
		return "Namespace"
	case AddressPoolKind:
		return "AddressPool"
	case NetworkPolicyKind:
		return "NetworkPolicy"
	case IngressKind:
		return "Ingress"
	case IngressClassKind:
		return "IngressClass"
	case SecretKind:
		return "Secret"
	case ServiceCIDRKind:
		return "ServiceCIDR"
	}
	return fmt.Sprintf("kinds(%#x)", uint16(k))
}

// Store holds the desired state. All methods may be called concurrently.
//
// It is a set of statedb tables: against a plain locked map (bench_test.go) a
// write costs a few microseconds more, and in return snapshots are free and
// consistent over all kinds, which every feature relies on.
type Store struct {
	db         *statedb.DB
	services   statedb.RWTable[*Service]
	slices     statedb.RWTable[*EndpointSlice]
	pods       statedb.RWTable[*Pod]
	nodes      statedb.RWTable[*Node]
	namespaces statedb.RWTable[*Namespace]
	pools      statedb.RWTable[*AddressPool]
	policies   statedb.RWTable[*NetworkPolicy]
	ingresses  statedb.RWTable[*Ingress]
	classes    statedb.RWTable[*IngressClass]
	secrets    statedb.RWTable[*Secret]
	// serviceCIDRs are the ranges of ClusterIPs.
	serviceCIDRs statedb.RWTable[*ServiceCIDR]

	mu     sync.Mutex
	synced Kind
	waiter chan struct{} // closed and replaced whenever synced grows
}

// NewStore makes an empty store. Close it when done.
func NewStore() (*Store, error) {
	s := &Store{db: statedb.New(), waiter: make(chan struct{})}
	var err error
	if s.services, err = newTable(s.db, "services", serviceByName, serviceByClaim); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.slices, err = newTable(s.db, "endpointslices", sliceByName, sliceByService); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.pods, err = newTable(s.db, "pods", podByName, podByIP); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.nodes, err = newTable(s.db, "nodes", nodeByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.namespaces, err = newTable(s.db, "namespaces", namespaceByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.pools, err = newTable(s.db, "addresspools", poolByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.policies, err = newTable(s.db, "networkpolicies", policyByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.ingresses, err = newTable(s.db, "ingresses", ingressByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.classes, err = newTable(s.db, "ingressclasses", classByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.secrets, err = newTable(s.db, "secrets", secretByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if s.serviceCIDRs, err = newTable(s.db, "servicecidrs", serviceCIDRByName); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if err := s.db.Start(); err != nil {
		return nil, fmt.Errorf("model: start store: %w", err)
	}
	return s, nil
}

// Close ends the store's background work.
func (s *Store) Close() error { return s.db.Stop() }

func newTable[O any](db *statedb.DB, name string, primary statedb.Indexer[O], more ...statedb.Indexer[O]) (
	statedb.RWTable[O], error) {
	header := func() []string { return []string{"Object"} }
	row := func(o O) []string { return []string{fmt.Sprint(o)} }
	return statedb.NewTableAny(db, name, header, row, primary, more...)
}

// key is the raw index key of a namespaced name. A zero byte cannot occur in
// either part, so "a"/"bc" and "ab"/"c" differ and namespaces sort together.
func key(n Name) index.Key {
	k := make(index.Key, 0, len(n.Namespace)+1+len(n.Name))
	k = append(k, n.Namespace...)
	k = append(k, 0)
	return append(k, n.Name...)
}

func unique[O, K any](name string, of func(O) K, raw func(K) index.Key) statedb.Index[O, K] {
	return statedb.Index[O, K]{
		Name:       name,
		FromObject: func(o O) index.KeySet { return index.NewKeySet(raw(of(o))) },
		FromKey:    raw,
		Unique:     true,
	}
}

var (
	serviceByName   = unique("name", func(s *Service) Name { return s.Name }, key)
	sliceByName     = unique("name", func(s *EndpointSlice) Name { return s.Name }, key)
	podByName       = unique("name", func(p *Pod) Name { return p.Name }, key)
	nodeByName      = unique("name", func(n *Node) string { return n.Name }, index.String)
	namespaceByName = unique("name", func(n *Namespace) string { return n.Name }, index.String)
	poolByName      = unique("name", func(p *AddressPool) string { return p.Name }, index.String)
	policyByName    = unique("name", func(p *NetworkPolicy) Name { return p.Name }, key)
	ingressByName   = unique("name", func(i *Ingress) Name { return i.Name }, key)
	classByName     = unique("name", func(c *IngressClass) string { return c.Name }, index.String)
	secretByName    = unique("name", func(s *Secret) Name { return s.Name }, key)
	sliceByService  = statedb.Index[*EndpointSlice, Name]{
		Name: "service",
		FromObject: func(s *EndpointSlice) index.KeySet {
			return index.NewKeySet(key(s.ServiceName()))
		},
		FromKey: key,
	}
	podByIP = statedb.Index[*Pod, netip.Addr]{
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
)

// Writer changes the store within one transaction.
type Writer struct {
	s   *Store
	txn statedb.WriteTxn
	err error
}

// Write runs fn in one transaction over all tables: readers see all of its
// changes or none. An error means that the store was closed, or a bug.
func (s *Store) Write(fn func(*Writer)) error {
	return s.WriteKinds(allKinds, fn)
}

// WriteKinds is Write for fewer tables: a source that owns one kind does not
// wait for the writers of others.
func (s *Store) WriteKinds(kinds Kind, fn func(*Writer)) error {
	var tables []statedb.TableMeta
	for _, t := range []struct {
		kind  Kind
		table statedb.TableMeta
	}{
		{ServiceKind, s.services}, {EndpointSliceKind, s.slices}, {PodKind, s.pods},
		{NodeKind, s.nodes}, {NamespaceKind, s.namespaces}, {AddressPoolKind, s.pools},
		{NetworkPolicyKind, s.policies}, {IngressKind, s.ingresses}, {IngressClassKind, s.classes},
		{SecretKind, s.secrets}, {ServiceCIDRKind, s.serviceCIDRs},
	} {
		if kinds&t.kind != 0 {
			tables = append(tables, t.table)
		}
	}
	w := &Writer{s: s, txn: s.db.WriteTxn(tables...)}
	fn(w)
	if w.err != nil {
		w.txn.Abort()
		return fmt.Errorf("model: write: %w", w.err)
	}
	w.txn.Commit()
	return nil
}

func (w *Writer) keep(err error) {
	if w.err == nil {
		w.err = err
	}
}

func put[O any](w *Writer, t statedb.RWTable[O], o O) {
	_, _, err := t.Insert(w.txn, o)
	w.keep(err)
}

func remove[O any](w *Writer, t statedb.RWTable[O], q statedb.Query[O]) {
	if o, _, ok := t.Get(w.txn, q); ok {
		_, _, err := t.Delete(w.txn, o)
		w.keep(err)
	}
}

// PutService sets a service; the store owns it from now on.
func (w *Writer) PutService(s *Service) { put(w, w.s.services, s) }

// PutEndpointSlice sets a slice; the store owns it from now on.
func (w *Writer) PutEndpointSlice(s *EndpointSlice) { put(w, w.s.slices, s) }

// PutPod sets a pod; the store owns it from now on.
func (w *Writer) PutPod(p *Pod) { put(w, w.s.pods, p) }

// PutNode sets a node; the store owns it from now on.
func (w *Writer) PutNode(n *Node) { put(w, w.s.nodes, n) }

// PutNamespace sets a namespace; the store owns it from now on.
func (w *Writer) PutNamespace(n *Namespace) { put(w, w.s.namespaces, n) }

// PutAddressPool sets a pool; the store owns it from now on.
func (w *Writer) PutAddressPool(p *AddressPool) { put(w, w.s.pools, p) }

// PutNetworkPolicy sets a policy; the store owns it from now on.
func (w *Writer) PutNetworkPolicy(p *NetworkPolicy) { put(w, w.s.policies, p) }

// PutIngress sets an Ingress; the store owns it from now on.
func (w *Writer) PutIngress(i *Ingress) { put(w, w.s.ingresses, i) }

// PutIngressClass sets a class; the store owns it from now on.
func (w *Writer) PutIngressClass(c *IngressClass) { put(w, w.s.classes, c) }

// PutSecret sets a Secret; the store owns it from now on.
func (w *Writer) PutSecret(s *Secret) { put(w, w.s.secrets, s) }

// Delete removes the object of the kind and name; nothing happens when there
// is none. Cluster-wide kinds have an empty Namespace.
func (w *Writer) Delete(kind Kind, n Name) {
	switch kind {
	case ServiceKind:
		remove(w, w.s.services, serviceByName.Query(n))
	case EndpointSliceKind:
		remove(w, w.s.slices, sliceByName.Query(n))
	case PodKind:
		remove(w, w.s.pods, podByName.Query(n))
	case NodeKind:
		remove(w, w.s.nodes, nodeByName.Query(n.Name))
	case NamespaceKind:
		remove(w, w.s.namespaces, namespaceByName.Query(n.Name))
	case AddressPoolKind:
		remove(w, w.s.pools, poolByName.Query(n.Name))
	case NetworkPolicyKind:
		remove(w, w.s.policies, policyByName.Query(n))
	case IngressKind:
		remove(w, w.s.ingresses, ingressByName.Query(n))
	case IngressClassKind:
		remove(w, w.s.classes, classByName.Query(n.Name))
	case SecretKind:
		remove(w, w.s.secrets, secretByName.Query(n))
	case ServiceCIDRKind:
		remove(w, w.s.serviceCIDRs, serviceCIDRByName.Query(n.Name))
	}
}

// Names lists the stored objects of one kind, as the transaction sees them.
func (w *Writer) Names(kind Kind) []Name {
	var names []Name
	switch kind {
	case ServiceKind:
		for o := range w.s.services.All(w.txn) {
			names = append(names, o.Name)
		}
	case EndpointSliceKind:
		for o := range w.s.slices.All(w.txn) {
			names = append(names, o.Name)
		}
	case PodKind:
		for o := range w.s.pods.All(w.txn) {
			names = append(names, o.Name)
		}
	case NodeKind:
		for o := range w.s.nodes.All(w.txn) {
			names = append(names, Name{Name: o.Name})
		}
	case NamespaceKind:
		for o := range w.s.namespaces.All(w.txn) {
			names = append(names, Name{Name: o.Name})
		}
	case AddressPoolKind:
		for o := range w.s.pools.All(w.txn) {
			names = append(names, Name{Name: o.Name})
		}
	case NetworkPolicyKind:
		for o := range w.s.policies.All(w.txn) {
			names = append(names, o.Name)
		}
	case IngressKind:
		for o := range w.s.ingresses.All(w.txn) {
			names = append(names, o.Name)
		}
	case IngressClassKind:
		for o := range w.s.classes.All(w.txn) {
			names = append(names, Name{Name: o.Name})
		}
	case SecretKind:
		for o := range w.s.secrets.All(w.txn) {
			names = append(names, o.Name)
		}
	case ServiceCIDRKind:
		for o := range w.s.serviceCIDRs.All(w.txn) {
			names = append(names, Name{Name: o.Name})
		}
	}
	return names
}
