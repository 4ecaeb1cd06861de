package model

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

// Kind is one of the tables, and a bit in a set of them.
type Kind uint32

// The kinds of objects that the store holds. To watch ServiceKind is to watch EndpointSlices, too: both change the
// same Service.
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
	BGPPeerKind
	BGPConfigurationKind
	BGPAdvertisementKind
	// PeerSecretKind is Secrets of the namespace wayleave-peers, BGPRouteKind what this node has learned from peers.
	PeerSecretKind
	BGPRouteKind
	// ConfigMapKind is ConfigMaps that Ingresses name.
	ConfigMapKind
)

// kinds are the descriptors of all kinds. A kind is added by its constant, a file with its type and descriptor, and a
// line here.
var kinds = []described{services, endpointSlices, pods, nodes, namespaces, addressPools, networkPolicies, ingresses,
	ingressClasses, secrets, serviceCIDRs, bgpPeers, bgpConfigurations, bgpAdvertisements, peerSecrets, bgpRoutes,
	configMaps}

// AllKinds is the set of all kinds.
func AllKinds() (all Kind) {
	for _, d := range kinds {
		all |= d.bit()
	}
	return all
}

// String is the API's name of the kind.
func (k Kind) String() string {
	for _, d := range kinds {
		if d.bit() == k {
			return d.String()
		}
	}
	return fmt.Sprintf("kinds(%#x)", uint32(k))
}

// place is the kind's place among a Store's tables.
func (k Kind) place() int { return bits.TrailingZeros32(uint32(k)) }

// maxKinds is how many a Kind has bits for.
const maxKinds = 32

// descriptor is all that the store must know of a kind with objects of type O.
type descriptor[O any] struct {
	kind Kind
	// label is the API's name of the kind.
	label string
	// name is an object's name; objects of the cluster have no namespace.
	name func(O) Name
	// indexes find objects by more than their name.
	indexes []statedb.Indexer[O]
	// partOf and owner make a change of an object a change of its owner, of another kind: of both, when it changes
	// its owner. Watching either kind is watching both.
	partOf Kind
	owner  func(O) Name

	byName statedb.Index[O, Name] // set by describe
}

// described is a descriptor of whatever type of objects.
type described interface {
	fmt.Stringer
	bit() Kind
	// watched is the kinds that a watcher may ask for to hear of this kind's changes.
	watched() Kind
	open(*statedb.DB) (table, error)
}

// describe completes a descriptor.
func describe[O any](d descriptor[O]) *descriptor[O] {
	d.byName = statedb.Index[O, Name]{
		Name:       "name",
		FromObject: func(o O) index.KeySet { return index.NewKeySet(key(d.name(o))) },
		FromKey:    key,
		Unique:     true,
	}
	return &d
}

// key is the raw index key of a name. A zero byte cannot occur in either part, so "a"/"bc" and "ab"/"c" differ and
// namespaces sort together.
func key(n Name) index.Key {
	k := make(index.Key, 0, len(n.Namespace)+1+len(n.Name))
	k = append(k, n.Namespace...)
	k = append(k, 0)
	return append(k, n.Name...)
}

func (d *descriptor[O]) String() string { return d.label }
func (d *descriptor[O]) bit() Kind      { return d.kind }
func (d *descriptor[O]) watched() Kind  { return d.kind | d.partOf }

func (d *descriptor[O]) open(db *statedb.DB) (table, error) {
	header := func() []string { return []string{"Object"} }
	row := func(o O) []string { return []string{fmt.Sprint(o)} }
	rows, err := statedb.NewTableAny(db, strings.ToLower(d.label), header, row, d.byName, d.indexes...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.label, err)
	}
	return &tableFor[O]{d, rows}, nil
}

// table is a Store's table of a kind.
type table interface {
	meta() statedb.TableMeta
	remove(statedb.WriteTxn, Name) error
	names(statedb.ReadTxn) []Name
	count(statedb.ReadTxn) int
	follow(*statedb.DB) (follower, error)
}

// tableFor is the table of a kind with objects of type O.
type tableFor[O any] struct {
	*descriptor[O]
	rows statedb.RWTable[O]
}

// tableOf is the Store's table of the kind.
func tableOf[O any](s *Store, d *descriptor[O]) statedb.RWTable[O] {
	return s.tables[d.kind.place()].(*tableFor[O]).rows
}

func (t *tableFor[O]) meta() statedb.TableMeta { return t.rows }

func (t *tableFor[O]) remove(txn statedb.WriteTxn, n Name) error {
	o, _, ok := t.rows.Get(txn, t.byName.Query(n))
	if !ok {
		return nil
	}
	_, _, err := t.rows.Delete(txn, o)
	return err
}

func (t *tableFor[O]) names(txn statedb.ReadTxn) (names []Name) {
	for o := range t.rows.All(txn) {
		names = append(names, t.name(o))
	}
	return names
}

func (t *tableFor[O]) count(txn statedb.ReadTxn) int { return t.rows.NumObjects(txn) }
