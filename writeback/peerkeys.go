package writeback

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/crypto/nacl/box"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"wayleave.dev/internal/statefile"
)

// What a node's Lease holds of the key that agents encrypt heartbeats with.
const (
	// peerLabel marks the Leases of nodes.
	peerLabel = "wayleave.dev/peer"
	// publicKey is the node's, base64; the agent writes it.
	publicKey = "wayleave.dev/public-key"
	// sealedKeys are the group's keys, newest first, each sealed to publicKey (nacl/box,
	// anonymous) and in base64, with commas between; the elected writer writes them.
	sealedKeys = "wayleave.dev/sealed-keys"
	// sealedFor says which keys for which public key these are, so that the writer need
	// not open them.
	sealedFor = "wayleave.dev/sealed-for"
	// keptKeys is how many keys agents accept: the newest, and those before it.
	keptKeys = 2
)

// PeerKeys gives the agents of a cluster a common secret without a Secret: each node has a
// key pair, publishes the public key in a Lease of its own, and the elected writer seals
// the group's key to it. Who may write Leases in the namespace may join.
type PeerKeys struct {
	Client kubernetes.Interface
	// Namespace is that of the DaemonSet, Node this node.
	Namespace, Node string
	// File keeps this node's private key, mode 0600. It is the node's own, and no data of
	// a Secret.
	File string
	Log  *slog.Logger

	public, private *[32]byte
}

func leaseOf(node string) string { return "wayleave-node-" + node }

// Load reads the key pair from the file, or makes one. Call it before the other methods. A damaged file is
// replaced by a new pair, for which the writer seals the group's key anew; a disk that cannot be written leaves
// the pair in memory. Both are told.
func (k *PeerKeys) Load() error {
	private, err := statefile.ReadWith(k.File, parseKey)
	if err != nil {
		k.Log.Warn("the key of this node is made anew unless a copy is told of", "err", err)
	}
	if private == nil {
		if _, private, err = box.GenerateKey(rand.Reader); err != nil {
			return fmt.Errorf("peer key: %w", err)
		}
		if err := statefile.WriteBytes(k.File, []byte(hex.EncodeToString(private[:])+"\n"), 0o600); err != nil {
			k.Log.Warn("the key of this node is lost when the agent ends", "file", k.File, "err", err)
		}
	}
	public, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		return fmt.Errorf("peer key: %s: %w", k.File, err)
	}
	k.private, k.public = private, (*[32]byte)(public)
	return nil
}

func parseKey(raw []byte) (*[32]byte, error) {
	private, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(private) != 32 {
		return nil, fmt.Errorf("found %d bytes, 64 hexadecimal digits are allowed", len(raw))
	}
	return (*[32]byte)(private), nil
}

// Run keeps this node's Lease, and calls set with the group's keys, newest first, at first
// and whenever they change. It returns ctx's error when that ends.
func (k *PeerKeys) Run(ctx context.Context, set func([][]byte)) error {
	events := k.watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", leaseOf(k.Node)).String()})
	var last string
	var known [][]byte
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 30*time.Second) {
		lease, err := k.publish(ctx)
		if err != nil {
			k.Log.Warn("the public key for heartbeats is not published", "err", err, "retry", wait)
		} else if sealed := lease.Annotations[sealedKeys]; sealed != "" && sealed != last {
			keys, err := k.open(sealed)
			if err != nil {
				k.Log.Warn("waiting for a key of the heartbeats that this node can open", "err", err)
			} else {
				last, wait = sealed, time.Second
				known = newest(keys, known)
				set(known)
			}
		}
		select {
		case <-ctx.Done():
		case <-events:
			wait = time.Second
		case <-time.After(wait):
		}
	}
	return ctx.Err()
}

// newest puts keys in front of those from before: peers that have not got the new one yet
// are still understood.
func newest(keys, before [][]byte) [][]byte {
	out := slices.Clone(keys)
	for _, b := range before {
		if !slices.ContainsFunc(out, func(k []byte) bool { return bytes.Equal(k, b) }) {
			out = append(out, b)
		}
	}
	return out[:min(len(out), keptKeys)]
}

// watch pokes the channel whenever one of the Leases changes.
func (k *PeerKeys) watch(ctx context.Context, options metav1.ListOptions) <-chan struct{} {
	poke := make(chan struct{}, 1)
	notify := func() {
		select {
		case poke <- struct{}{}:
		default:
		}
	}
	leases := k.Client.CoordinationV1().Leases(k.Namespace)
	some := func(o metav1.ListOptions) metav1.ListOptions {
		o.FieldSelector, o.LabelSelector = options.FieldSelector, options.LabelSelector
		return o
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return leases.List(ctx, some(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return leases.Watch(ctx, some(o))
		},
	}
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: cache.ToListWatcherWithWatchListSemantics(lw, k.Client), ObjectType: &coordinationv1.Lease{}, Handler: cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() }}})
	go controller.RunWithContext(ctx)
	return poke
}

// publish makes the node's Lease say its public key. The Lease goes with the Node.
func (k *PeerKeys) publish(ctx context.Context) (*coordinationv1.Lease, error) {
	leases := k.Client.CoordinationV1().Leases(k.Namespace)
	mine := base64.StdEncoding.EncodeToString(k.public[:])
	have, err := leases.Get(ctx, leaseOf(k.Node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		node, err := k.Client.CoreV1().Nodes().Get(ctx, k.Node, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", k.Node, err)
		}
		return leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Name: leaseOf(k.Node), Labels: map[string]string{peerLabel: "true", "app.kubernetes.io/managed-by": "wayleave"},
			Annotations:     map[string]string{publicKey: mine},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		}, Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(k.Node)}}, metav1.CreateOptions{})
	}
	if err != nil {
		return nil, err
	}
	if have.Annotations[publicKey] == mine && have.Labels[peerLabel] == "true" {
		return have, nil
	}
	next := have.DeepCopy()
	next.Labels = with(next.Labels, peerLabel, "true")
	next.Annotations = with(next.Annotations, publicKey, mine)
	return leases.Update(ctx, next, metav1.UpdateOptions{})
}

func with(m map[string]string, k, v string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

// open opens what the writer sealed to this node.
func (k *PeerKeys) open(sealed string) (keys [][]byte, err error) {
	for part := range strings.SplitSeq(sealed, ",") {
		raw, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			return nil, fmt.Errorf("lease %s: annotation %s: %w", leaseOf(k.Node), sealedKeys, err)
		}
		key, ok := box.OpenAnonymous(nil, raw, k.public, k.private)
		if !ok || len(key) != 32 {
			return nil, fmt.Errorf("lease %s: annotation %s: not sealed to this node's public key", leaseOf(k.Node), sealedKeys)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// Seal is the elected writer's part: it has every node's Lease hold the group's keys, until
// ctx ends. The keys are those that were sealed to this node; a writer without any makes
// a key, which is the newest then.
func (k *PeerKeys) Seal(ctx context.Context) error {
	events := k.watch(ctx, metav1.ListOptions{LabelSelector: peerLabel + "=true"})
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		if err := k.sealAll(ctx); err != nil && ctx.Err() == nil {
			k.Log.Warn("the key of the heartbeats is not with every node", "err", err, "retry", wait)
		}
		select {
		case <-ctx.Done():
		case <-events:
			wait = time.Second
		case <-time.After(wait):
		}
	}
	return ctx.Err()
}

func (k *PeerKeys) sealAll(ctx context.Context) error {
	leases := k.Client.CoordinationV1().Leases(k.Namespace)
	list, err := leases.List(ctx, metav1.ListOptions{LabelSelector: peerLabel + "=true"})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list.Items, func(l coordinationv1.Lease) bool { return l.Name == leaseOf(k.Node) })
	if i < 0 {
		return nil // Run makes it, which is an event
	}
	var keys [][]byte
	if sealed := list.Items[i].Annotations[sealedKeys]; sealed != "" {
		if keys, err = k.open(sealed); err != nil {
			k.Log.Info("making a new key for the heartbeats", "why", err)
		}
	}
	if len(keys) == 0 {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return err
		}
		keys = [][]byte{key}
	}
	var errs []error
	for _, l := range list.Items {
		errs = append(errs, k.seal(ctx, l, keys))
	}
	return errors.Join(errs...)
}

// seal writes the keys into one Lease, unless they are there.
func (k *PeerKeys) seal(ctx context.Context, l coordinationv1.Lease, keys [][]byte) error {
	raw, err := base64.StdEncoding.DecodeString(l.Annotations[publicKey])
	if err != nil || len(raw) != 32 {
		return fmt.Errorf("lease %s: annotation %s: found %q; a public key of 32 bytes in base64 is allowed", l.Name, publicKey, l.Annotations[publicKey])
	}
	keys = keys[:min(len(keys), keptKeys)]
	id := sha256.Sum256(bytes.Join(append([][]byte{raw}, keys...), nil))
	want := hex.EncodeToString(id[:8])
	if l.Annotations[sealedFor] == want {
		return nil
	}
	var sealed []string
	for _, key := range keys {
		b, err := box.SealAnonymous(nil, key, (*[32]byte)(raw), rand.Reader)
		if err != nil {
			return fmt.Errorf("lease %s: %w", l.Name, err)
		}
		sealed = append(sealed, base64.StdEncoding.EncodeToString(b))
	}
	next := l.DeepCopy()
	next.Annotations = with(with(next.Annotations, sealedFor, want), sealedKeys, strings.Join(sealed, ","))
	_, err = k.Client.CoordinationV1().Leases(k.Namespace).Update(ctx, next, metav1.UpdateOptions{})
	return err
}
