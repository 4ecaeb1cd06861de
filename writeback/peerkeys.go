package writeback

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/crypto/nacl/box"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"wayleave.dev/internal/statefile"
)

// Labels and annotations of a node's Lease about the heartbeat keys.
const (
	// peerLabel marks the Leases of nodes.
	peerLabel = "wayleave.dev/peer"
	// publicKey is the node's, base64; the agent writes it.
	publicKey = "wayleave.dev/public-key"
	// sealedKeys are the group's keys, newest first, each sealed to publicKey (nacl/box, anonymous), in base64 and
	// separated by commas; the elected writer writes them.
	sealedKeys = "wayleave.dev/sealed-keys"
	// sealedFor identifies the keys and the public key, so that the writer need not open them.
	sealedFor = "wayleave.dev/sealed-for"
	// answerKeys are the group's keys as the node has them, sealed to the public key of a writer that requested them;
	// answerTo identifies that public key.
	answerKeys = "wayleave.dev/answer-keys"
	answerTo   = "wayleave.dev/answer-to"
	// keptKeys is how many keys agents accept: the newest, and those before it.
	keptKeys = 2
)

// PeerKeys is a node's part of the heartbeat keys, which need no Secret: each node has a key pair and publishes the
// public key in its own Lease, and the elected writer seals the group's keys to it (KeySealer). Anyone who can write
// Leases in the namespace can join.
type PeerKeys struct {
	Client kubernetes.Interface
	// Namespace is PeersNamespace, Node this node.
	Namespace, Node string
	// File stores this node's private key, mode 0600. It is the node's own, and contains no Secret data.
	File string
	Log  *slog.Logger

	public, private *[32]byte
}

// Load reads the key pair from the file, or creates one. Call it before the other methods. A damaged file is replaced
// by a new pair, for which the writer seals the group's key again. If the disk cannot be written, the pair stays in
// memory. Both are reported.
func (k *PeerKeys) Load() error {
	private, err := statefile.ReadWith(k.File, parseKey)
	if err != nil {
		k.Log.Warn("the key file of this node is damaged; the previous copy or a new key is used", "err", err)
	}
	if private == nil {
		if _, private, err = box.GenerateKey(rand.Reader); err != nil {
			return fmt.Errorf("peer key: %w", err)
		}
		if err := statefile.WriteBytes(k.File, []byte(hex.EncodeToString(private[:])+"\n"), 0o600); err != nil {
			k.Log.Warn("cannot write the key of this node; it is lost when the agent ends", "file", k.File, "err", err)
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
		return nil, fmt.Errorf("found %d bytes; allowed: 64 hexadecimal digits", len(raw))
	}
	return (*[32]byte)(private), nil
}

// Run publishes the public key in this node's Lease and answers a writer that requests the keys. It calls set with the
// group's keys, newest first, at the start and after each change. It returns ctx's error when ctx ends.
func (k *PeerKeys) Run(ctx context.Context, set func([][]byte)) error {
	own := watchLeases(ctx, k.Client, k.Namespace, oneLease(leaseOf(k.Node)))
	asked := watchLeases(ctx, k.Client, k.Namespace, oneLease(askLease))
	var last string
	var known [][]byte
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 30*time.Second) {
		lease, err := k.publish(ctx)
		if err != nil {
			k.Log.Warn("cannot publish the public key for heartbeats", "err", err, "retry", wait)
		} else if sealed := lease.Annotations[sealedKeys]; sealed != "" {
			keys, err := k.open(sealed)
			if err != nil {
				k.Log.Warn("waiting for a heartbeat key that this node can open", "err", err)
			} else if sealed != last {
				last, wait = sealed, time.Second
				known = newest(keys, known)
				set(known)
			}
			if err == nil {
				if err := k.answer(ctx, asked.lease(askLease), lease, keys); err != nil && ctx.Err() == nil {
					k.Log.Warn("cannot answer the writer's request for the heartbeat key", "err", err,
						"retry", wait)
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-own.changed:
			wait = time.Second
		case <-asked.changed:
			wait = time.Second
		case <-time.After(wait):
		}
	}
	return ctx.Err()
}

// answerWithin spreads the answers of all nodes: the writer needs one, and then withdraws its request.
const answerWithin = 2 * time.Second

// answer seals the keys in this node's Lease to a writer that requests them.
func (k *PeerKeys) answer(ctx context.Context, ask, own *coordinationv1.Lease, keys [][]byte) error {
	to := askedBy(ask)
	if to == nil || own.Annotations[answerTo] == ask.Annotations[publicKey] {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(mathrand.N(answerWithin)):
	}
	now, err := k.Client.CoordinationV1().Leases(k.Namespace).Get(ctx, askLease, metav1.GetOptions{})
	if err != nil || now.Annotations[publicKey] != ask.Annotations[publicKey] {
		return client(err)
	}
	sealed, err := sealAll(keys, to)
	if err != nil {
		return err
	}
	_, err = k.lease().Set(ctx, nil, map[string]string{answerKeys: sealed, answerTo: ask.Annotations[publicKey]})
	return err
}

// client returns an error of the API; nil if the object does not exist.
func client(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (k *PeerKeys) lease() NodeLease {
	return NodeLease{Client: k.Client, Namespace: k.Namespace, Node: k.Node}
}

// newest puts new keys before the previous ones: peers without the new key can still be decrypted.
func newest(keys, before [][]byte) [][]byte {
	out := slices.Clone(keys)
	for _, b := range before {
		if !slices.ContainsFunc(out, func(k []byte) bool { return bytes.Equal(k, b) }) {
			out = append(out, b)
		}
	}
	return out[:min(len(out), keptKeys)]
}

// publish writes the public key to the node's Lease.
func (k *PeerKeys) publish(ctx context.Context) (*coordinationv1.Lease, error) {
	mine := base64.StdEncoding.EncodeToString(k.public[:])
	return k.lease().Set(ctx, map[string]string{peerLabel: "true"}, map[string]string{publicKey: mine})
}

// open decrypts what the writer sealed for this node.
func (k *PeerKeys) open(sealed string) ([][]byte, error) {
	keys, err := openAll(sealed, k.public, k.private)
	if err != nil {
		return nil, fmt.Errorf("lease %s: annotation %s: %w", leaseOf(k.Node), sealedKeys, err)
	}
	return keys, nil
}

// sealAll seals keys to a public key, in base64, separated by commas.
func sealAll(keys [][]byte, to *[32]byte) (string, error) {
	var out []string
	for _, key := range keys {
		b, err := box.SealAnonymous(nil, key, to, rand.Reader)
		if err != nil {
			return "", fmt.Errorf("seal a heartbeat key: %w", err)
		}
		out = append(out, base64.StdEncoding.EncodeToString(b))
	}
	return strings.Join(out, ","), nil
}

// openAll decrypts the result of sealAll: 1 to keptKeys keys of 32 bytes.
func openAll(sealed string, public, private *[32]byte) (keys [][]byte, err error) {
	for part := range strings.SplitSeq(sealed, ",") {
		raw, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			return nil, err
		}
		key, ok := box.OpenAnonymous(nil, raw, public, private)
		if !ok || len(key) != 32 || len(keys) == keptKeys {
			return nil, errors.New("not sealed to this public key")
		}
		keys = append(keys, key)
	}
	return keys, nil
}
