package writeback

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/crypto/nacl/box"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// askLease is the Lease by which a writer requests the group's keys from nodes: its annotation publicKey is the
// writer's while it has no keys.
const askLease = "wayleave-writer"

// askFor is how long a writer waits for an answer before it creates a new key. During an upgrade the first agent that
// can answer may still be starting.
const askFor = 2 * time.Minute

// roundsEvery is the wait between a change of a Lease and the list of all that follows: a captured node may write its
// Lease without a pause.
const roundsEvery = 500 * time.Millisecond

// KeySealer is the elected writer's part of the heartbeat keys: it seals the group's keys to the public key in every
// node's Lease. It stores nothing on disk: a new writer requests the keys, a node answers with the keys sealed to the
// writer, and the writer accepts an answer only if it matches what at least half of the Leases were sealed for.
type KeySealer struct {
	Client kubernetes.Interface
	// Namespace is PeersNamespace.
	Namespace string
	Log       *slog.Logger

	public, private *[32]byte
	keys            [][]byte
	asked           time.Time
	askFor          time.Duration // 0 for the constant
	roundsEvery     time.Duration // 0 for the constant
}

// Run seals until ctx ends, and returns ctx's error. It forgets the keys then.
func (s *KeySealer) Run(ctx context.Context) error {
	var err error
	if s.public, s.private, err = box.GenerateKey(rand.Reader); err != nil {
		return fmt.Errorf("heartbeat key: %w", err)
	}
	s.keys, s.asked = nil, time.Time{}
	s.askFor, s.roundsEvery = cmp.Or(s.askFor, askFor), cmp.Or(s.roundsEvery, roundsEvery)
	w := watchLeases(ctx, s.Client, s.Namespace, metav1.ListOptions{LabelSelector: peerLabel + "=true"})
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		if err := s.round(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.Log.Warn("some nodes do not have the heartbeat key", "err", err, "retry", wait)
		}
		if s.keys == nil {
			wait = min(wait, s.askFor/4)
		}
		select {
		case <-ctx.Done():
		case <-w.changed:
			wait = time.Second
			pause(ctx, s.roundsEvery, nil, nil)
		case <-time.After(wait):
		}
	}
	return ctx.Err()
}

// round finds the keys if the writer has none yet, and seals them to all nodes.
func (s *KeySealer) round(ctx context.Context, now time.Time) error {
	peers := metav1.ListOptions{LabelSelector: peerLabel + "=true"}
	list, err := s.Client.CoordinationV1().Leases(s.Namespace).List(ctx, peers)
	if err != nil {
		return err
	}
	if s.keys == nil {
		if ok, err := s.find(ctx, list.Items, now); !ok {
			return err
		}
	}
	var errs []error
	if !s.asked.IsZero() {
		if err := s.ask(ctx, ""); err != nil {
			errs = append(errs, err)
		} else {
			s.asked = time.Time{}
		}
	}
	for i := range list.Items {
		if _, ok := nodeOf(list.Items[i].Name); ok {
			errs = append(errs, s.seal(ctx, &list.Items[i]))
		}
	}
	return errors.Join(errs...)
}

// find reads the keys from a node's answer. If no node has any, it creates one; otherwise it requests them, and
// creates one if no answer arrives.
func (s *KeySealer) find(ctx context.Context, leases []coordinationv1.Lease, now time.Time) (ok bool, err error) {
	mine := base64.StdEncoding.EncodeToString(s.public[:])
	anySealed := false
	for i := range leases {
		l := &leases[i]
		anySealed = anySealed || l.Annotations[sealedKeys] != ""
		if l.Annotations[answerTo] != mine {
			continue
		}
		keys, err := openAll(l.Annotations[answerKeys], s.public, s.private)
		switch {
		case err != nil:
			s.Log.Warn("an answer with the heartbeat key is rejected", "lease", l.Name, "err", err)
		case !believed(leases, keys):
			s.Log.Warn("an answer with the heartbeat key is rejected", "lease", l.Name, "err",
				"most nodes have another key")
		default:
			s.keys = keys
			return true, nil
		}
	}
	if anySealed && (s.asked.IsZero() || now.Sub(s.asked) < s.askFor) {
		if s.asked.IsZero() {
			if err := s.ask(ctx, mine); err != nil {
				return false, err
			}
			s.asked = now
		}
		return false, nil
	}
	if len(leases) == 0 {
		return false, nil // the first node's Lease is an event
	}
	if anySealed {
		s.Log.Warn("creating a new heartbeat key: no node answered with the current one", "asked for", s.askFor)
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return false, err
	}
	s.keys = [][]byte{key}
	return true, nil
}

// believed reports whether at least half of the Leases with sealed keys contain these keys, so that one captured node
// cannot make the writer distribute another key.
func believed(leases []coordinationv1.Lease, keys [][]byte) bool {
	same, all := 0, 0
	for i := range leases {
		l := &leases[i]
		raw, err := publicOf(l)
		if err != nil || l.Annotations[sealedFor] == "" {
			continue
		}
		if all++; l.Annotations[sealedFor] == keysID(raw, keys) {
			same++
		}
	}
	return 2*same >= all
}

// ask sets the public key in the Lease of requests; an empty one withdraws the request.
func (s *KeySealer) ask(ctx context.Context, public string) error {
	leases := s.Client.CoordinationV1().Leases(s.Namespace)
	have, err := leases.Get(ctx, askLease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: askLease,
			Labels:      map[string]string{"app.kubernetes.io/managed-by": "wayleave"},
			Annotations: map[string]string{publicKey: public}}}
		_, err = leases.Create(ctx, l, metav1.CreateOptions{})
	} else if err == nil && have.Annotations[publicKey] != public {
		next := have.DeepCopy()
		next.Annotations = merged(next.Annotations, map[string]string{publicKey: public})
		_, err = leases.Update(ctx, next, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("lease %s: %w", askLease, err)
	}
	return nil
}

// askedBy returns the public key of a writer that requests keys, nil for none.
func askedBy(l *coordinationv1.Lease) *[32]byte {
	if l == nil {
		return nil
	}
	raw, err := publicOf(l)
	if err != nil {
		return nil
	}
	return (*[32]byte)(raw)
}

func publicOf(l *coordinationv1.Lease) ([]byte, error) {
	raw, err := base64.StdEncoding.DecodeString(l.Annotations[publicKey])
	if err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("lease %s: annotation %s: found %q; allowed: a public key of 32 bytes in base64",
			l.Name, publicKey, short(l.Annotations[publicKey]))
	}
	return raw, nil
}

// keysID identifies keys that are sealed to a public key, without revealing them.
func keysID(public []byte, keys [][]byte) string {
	id := sha256.Sum256(bytes.Join(append([][]byte{public}, keys...), nil))
	return hex.EncodeToString(id[:8])
}

// seal writes the keys into one Lease, unless they are there.
func (s *KeySealer) seal(ctx context.Context, l *coordinationv1.Lease) error {
	raw, err := publicOf(l)
	if err != nil {
		return err
	}
	want := keysID(raw, s.keys)
	if l.Annotations[sealedFor] == want {
		return nil
	}
	sealed, err := sealAll(s.keys, (*[32]byte)(raw))
	if err != nil {
		return fmt.Errorf("lease %s: %w", l.Name, err)
	}
	next := l.DeepCopy()
	next.Annotations = merged(next.Annotations, map[string]string{sealedFor: want, sealedKeys: sealed})
	_, err = s.Client.CoordinationV1().Leases(s.Namespace).Update(ctx, next, metav1.UpdateOptions{})
	return err
}
