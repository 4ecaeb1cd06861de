package writeback

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/nacl/box"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// keysOf are the keys that a node's agent has got.
type keysOf struct {
	mu   sync.Mutex
	keys [][]byte
	// Stop ends the agent and waits for that.
	stop func()
}

func (k *keysOf) get() [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.keys)
}

// peer starts the part of an agent.
func peer(t *testing.T, c *fake.Clientset, node, file string) *keysOf {
	t.Helper()
	k := &PeerKeys{Client: c, Namespace: PeersNamespace, Node: node, File: file, Log: slog.New(slog.DiscardHandler)}
	if err := k.Load(); err != nil {
		t.Fatal(err)
	}
	out := &keysOf{}
	out.stop = background(t, func(ctx context.Context) {
		_ = k.Run(ctx, func(keys [][]byte) {
			out.mu.Lock()
			defer out.mu.Unlock()
			out.keys = keys
		})
	})
	return out
}

// sealer starts the part of an elected writer, which knows nothing from before.
func sealer(t *testing.T, c *fake.Clientset, patience time.Duration) (stop func()) {
	t.Helper()
	s := &KeySealer{Client: c, Namespace: PeersNamespace, Log: slog.New(slog.DiscardHandler), askFor: patience}
	return background(t, func(ctx context.Context) { _ = s.Run(ctx) })
}

func background(t *testing.T, fn func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { fn(ctx) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func peerNodes() *fake.Clientset {
	c := fake.NewClientset()
	for _, n := range []string{"node1", "node2", "node3", "node4"} {
		_ = c.Tracker().Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, UID: "u-1"}})
	}
	return c
}

func sameKey(a, b *keysOf) func() bool {
	return func() bool {
		x, y := a.get(), b.get()
		return len(x) > 0 && len(y) > 0 && bytes.Equal(x[0], y[0])
	}
}

// Every node gets the one key, also one that comes later and one that starts again. A new
// writer, which has nothing on a disk, gets it from the nodes and keeps it. No key can be
// read in the API.
func TestEveryNodeGetsTheKeyOfHeartbeats(t *testing.T) {
	c, dir := peerNodes(), t.TempDir()
	file := func(node string) string { return filepath.Join(dir, node) }
	stop := sealer(t, c, time.Minute)
	first := peer(t, c, "node1", file("node1"))
	second := peer(t, c, "node2", file("node2"))
	soon(t, "node1 and node2 have a key", sameKey(first, second))
	third := peer(t, c, "node3", file("node3"))
	soon(t, "node3 has it too", sameKey(first, third))
	key := first.get()[0]
	first.stop()
	stop()
	stop = sealer(t, c, time.Minute)
	first = peer(t, c, "node1", file("node1"))
	soon(t, "node1 has the same key after a restart", sameKey(first, second))
	newcomer := peer(t, c, "node4", file("node4"))
	soon(t, "a new writer gives the key to a new node", sameKey(newcomer, second))
	if !bytes.Equal(newcomer.get()[0], key) {
		t.Error("a new writer changed the key")
	}
	soon(t, "the writer took its question back", func() bool {
		l, err := c.CoordinationV1().Leases(PeersNamespace).Get(t.Context(), askLease, metav1.GetOptions{})
		return err == nil && l.Annotations[publicKey] == ""
	})
	stop()
	list, err := c.CoordinationV1().Leases(PeersNamespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 5 {
		t.Fatalf("%d leases, %v", len(list.Items), err)
	}
	for _, l := range list.Items {
		if _, isNode := nodeOf(l.Name); isNode && (len(l.OwnerReferences) != 1 || l.OwnerReferences[0].Kind != "Node") {
			t.Errorf("lease %s is owned by %v", l.Name, l.OwnerReferences)
		}
		for name, v := range l.Annotations {
			if strings.Contains(v, string(key)) || strings.Contains(v, base64.StdEncoding.EncodeToString(key)) {
				t.Errorf("lease %s: annotation %s shows the key", l.Name, name)
			}
		}
	}
}

// Where no node can answer, a writer makes a new key, and nodes understand the one before.
func TestAWriterWithoutAnAnswerMakesANewKey(t *testing.T) {
	c, dir := peerNodes(), t.TempDir()
	// Agents of the version before do not know the question.
	var mute atomic.Bool
	c.PrependReactor("update", "leases", func(a k8stesting.Action) (bool, runtime.Object, error) {
		l, ok := a.(k8stesting.UpdateAction).GetObject().(*coordinationv1.Lease)
		if mute.Load() && ok && l.Annotations[answerTo] != "" {
			return true, nil, errors.New("it is not known how to answer")
		}
		return false, nil, nil
	})
	stop := sealer(t, c, time.Minute)
	old := peer(t, c, "node1", filepath.Join(dir, "node1"))
	soon(t, "node1 has a key", func() bool { return len(old.get()) == 1 })
	key := old.get()[0]
	stop()
	mute.Store(true)
	sealer(t, c, 300*time.Millisecond)
	soon(t, "node1 has a new key beside the old one", func() bool {
		keys := old.get()
		return len(keys) == 2 && !bytes.Equal(keys[0], key) && bytes.Equal(keys[1], key)
	})
}

// A node that answers with a key of its own is not believed.
func TestOneNodeCannotChangeTheKeyOfHeartbeats(t *testing.T) {
	c, dir := peerNodes(), t.TempDir()
	stop := sealer(t, c, time.Minute)
	var peers []*keysOf
	for _, n := range []string{"node1", "node2", "node3"} {
		peers = append(peers, peer(t, c, n, filepath.Join(dir, n)))
	}
	soon(t, "three nodes have a key", func() bool {
		return sameKey(peers[0], peers[1])() &&
			sameKey(peers[0], peers[2])()
	})
	key := peers[0].get()[0]
	stop()
	for _, p := range peers {
		p.stop()
	}
	s := &KeySealer{Client: c, Namespace: PeersNamespace, Log: slog.New(slog.DiscardHandler), askFor: time.Minute}
	public, private, err := box.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.public, s.private = public, private
	answer := func(node string, keys [][]byte) {
		t.Helper()
		sealed, err := sealAll(keys, public)
		if err != nil {
			t.Fatal(err)
		}
		l := NodeLease{Client: c, Namespace: PeersNamespace, Node: node}
		have, err := l.Set(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := publicOf(have)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Set(t.Context(), nil, map[string]string{answerKeys: sealed,
			answerTo: base64.StdEncoding.EncodeToString(public[:]), sealedFor: keysID(raw, keys)}); err != nil {
			t.Fatal(err)
		}
	}
	answer("node1", [][]byte{bytes.Repeat([]byte{7}, 32)})
	if err := s.round(t.Context(), time.Now()); err != nil || s.keys != nil {
		t.Fatalf("a forged key was taken: %d keys, %v", len(s.keys), err)
	}
	answer("node2", [][]byte{key})
	if err := s.round(t.Context(), time.Now()); err != nil || len(s.keys) != 1 || !bytes.Equal(s.keys[0], key) {
		t.Fatalf("the key of most nodes was not taken: %d keys, %v", len(s.keys), err)
	}
}

// A damaged key is named and made anew; a disk that takes nothing stops no agent.
func TestAPeerKeyThatCannotBeReadIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "peer-key")
	for _, text := range []string{"abc\n", "", strings.Repeat("0", 63), strings.Repeat("z", 64),
		strings.Repeat("\x00", 64)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		k := &PeerKeys{File: file, Log: slog.New(slog.NewTextHandler(&said, nil))}
		if err := k.Load(); err != nil || !strings.Contains(said.String(), file) || !strings.Contains(said.String(),
			"allowed: 64 hexadecimal digits") {
			t.Errorf("%q: %v, said %s", text, err, &said)
		}
		again := &PeerKeys{File: file, Log: slog.New(slog.DiscardHandler)}
		if err := again.Load(); err != nil || *again.private != *k.private {
			t.Errorf("%q: the new key is not kept: %v", text, err)
		}
	}
	away := &PeerKeys{File: "/proc/no-such-folder/peer-key", Log: slog.New(slog.DiscardHandler)}
	if err := away.Load(); err != nil || away.private == nil {
		t.Errorf("without a disk: %v", err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file made is %v, %v", info, err)
	}
}
