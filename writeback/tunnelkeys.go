package writeback

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// tunnelAnnotation has the public keys with which a node encrypts, see TunnelKeys. Only that node can write it: the
// ValidatingAdmissionPolicy wayleave-agent binds the Lease to the node of the token.
const tunnelAnnotation = "wayleave.dev/wireguard"

// TunnelKey is a public key in base64 with its UDP port.
type TunnelKey struct {
	Key  string `json:"key"`
	Port uint16 `json:"port"`
}

// maxTunnelKeys bounds the keys of a node.
const maxTunnelKeys = 4

// TunnelKeys publishes the public keys of a node's tunnels in its Lease, and reads those of all nodes. Set the fields,
// and call Run once. Safe for concurrent use.
type TunnelKeys struct {
	Client kubernetes.Interface
	// Namespace is PeersNamespace, Node this node.
	Namespace, Node string
	Log             *slog.Logger

	once    sync.Once
	changed chan struct{}
	mu      sync.Mutex
	own     []TunnelKey
	want    bool // own is to be published
	all     map[string][]TunnelKey
	synced  bool
	poke    chan struct{}
	failure error
}

func (k *TunnelKeys) init() {
	k.once.Do(func() { k.changed, k.poke = make(chan struct{}, 1), make(chan struct{}, 1) })
}

// Changed tells that Nodes has changed.
func (k *TunnelKeys) Changed() <-chan struct{} {
	k.init()
	return k.changed
}

// Publish has the keys published; none withdraws those before. It does not wait.
func (k *TunnelKeys) Publish(keys []TunnelKey) {
	k.init()
	k.mu.Lock()
	k.own, k.want = keys, true
	k.mu.Unlock()
	signal(k.poke)
}

// Nodes returns the keys of all nodes, as the API server has them. ok is false before they are known. err says why the
// node's own keys are not published.
func (k *TunnelKeys) Nodes() (keys map[string][]TunnelKey, ok bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.all, k.synced, k.failure
}

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// The Leases of a cluster change whenever any node writes its own, and a captured node may write without a pause.
const (
	// keysEvery is the minimum interval at which Leases are read.
	keysEvery = 500 * time.Millisecond
	// verifyEvery is how often the node's own Lease is read from the API server while the watch shows its keys there.
	verifyEvery = 5 * time.Minute
)

// Run reads and publishes until ctx ends, and returns ctx's error. While the watch shows this node's keys, changes of
// Leases cause no requests.
func (k *TunnelKeys) Run(ctx context.Context) error {
	k.init()
	w := watchLeases(ctx, k.Client, k.Namespace, metav1.ListOptions{})
	var due time.Time // of the next verification or retry
	for retry := time.Second; ctx.Err() == nil; {
		next := 100 * time.Millisecond
		if w.synced() {
			k.read(w.all())
			now := time.Now()
			isMissing := !k.isPublished(w.lease(leaseOf(k.Node)))
			if !isMissing && retry > time.Second {
				retry, due = time.Second, now.Add(verifyEvery) // it was written in spite of the error
			}
			if now.After(due) || isMissing && retry == time.Second {
				err := k.publish(ctx)
				if err != nil && ctx.Err() == nil {
					k.Log.Warn("cannot publish the keys of encryption", "err", err, "retry", retry)
					due, retry = now.Add(retry), min(2*retry, 30*time.Second)
				} else {
					due, retry = now.Add(verifyEvery), time.Second
				}
			}
			next = time.Until(due)
		}
		if !pause(ctx, next, k.poke, w.changed) || !pause(ctx, keysEvery, nil, nil) {
			break
		}
	}
	return ctx.Err()
}

// isPublished reports whether a Lease has what this node publishes, and then clears an earlier failure.
func (k *TunnelKeys) isPublished(l *coordinationv1.Lease) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, err := keysText(k.own)
	if k.want && (err != nil || l == nil || l.Annotations[tunnelAnnotation] != text) {
		return false
	}
	k.failure = nil
	return true
}

// keysText is the annotation for keys; none is empty.
func keysText(keys []TunnelKey) (string, error) {
	if len(keys) == 0 {
		return "", nil
	}
	raw, err := json.Marshal(keys)
	return string(raw), err
}

// Withdraw takes the keys of this node out of its Lease, if it has any, and then waits until ctx ends. It watches
// nothing. The agent goes on where that fails: nodes without a handshake send unencrypted, or nothing.
func (k *TunnelKeys) Withdraw(ctx context.Context) error {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 30*time.Second) {
		l, err := k.Client.CoordinationV1().Leases(k.Namespace).Get(ctx, leaseOf(k.Node), metav1.GetOptions{})
		switch {
		case client(err) == nil && (err != nil || l.Annotations[tunnelAnnotation] == ""):
			<-ctx.Done()
			return ctx.Err()
		case err == nil:
			k.Publish(nil)
			err = k.publish(ctx)
			wait = time.Second
		}
		if err != nil && ctx.Err() == nil {
			k.Log.Warn("cannot withdraw the keys of encryption", "err", err, "retry", wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return ctx.Err()
}

func (k *TunnelKeys) read(leases []*coordinationv1.Lease) {
	all := map[string][]TunnelKey{}
	for _, l := range leases {
		if node, keys := ReadTunnelKeys(l); len(keys) > 0 {
			all[node] = keys
		}
	}
	k.mu.Lock()
	isSame := k.synced && maps.EqualFunc(k.all, all, slices.Equal[[]TunnelKey])
	k.all, k.synced = all, true
	k.mu.Unlock()
	if !isSame {
		signal(k.changed)
	}
}

func (k *TunnelKeys) publish(ctx context.Context) error {
	k.mu.Lock()
	own, want := k.own, k.want
	k.mu.Unlock()
	if !want {
		return nil
	}
	text, err := keysText(own)
	if err != nil {
		return fmt.Errorf("lease %s: %w", leaseOf(k.Node), err)
	}
	_, err = NodeLease{Client: k.Client, Namespace: k.Namespace, Node: k.Node}.Set(ctx, nil,
		map[string]string{tunnelAnnotation: text})
	k.mu.Lock()
	k.failure = err
	k.mu.Unlock()
	return err
}

// ReadTunnelKeys returns the node of a Lease and its keys; none if it has none, or what it has cannot be read.
func ReadTunnelKeys(l *coordinationv1.Lease) (node string, keys []TunnelKey) {
	node, ok := nodeOf(l.Name)
	raw := l.Annotations[tunnelAnnotation]
	if !ok || raw == "" || len(raw) > maxReportText || json.Unmarshal([]byte(raw), &keys) != nil ||
		len(keys) > maxTunnelKeys {
		return node, nil
	}
	return node, keys
}
