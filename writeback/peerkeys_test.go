package writeback

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
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

// peer starts the part of an agent; writer also that of the elected.
func peer(t *testing.T, c *fake.Clientset, node, file string, writer bool) *keysOf {
	t.Helper()
	k := &PeerKeys{Client: c, Namespace: DNSNamespace, Node: node, File: file, Log: slog.New(slog.DiscardHandler)}
	if err := k.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	out := &keysOf{stop: func() { cancel(); wg.Wait() }}
	t.Cleanup(out.stop)
	wg.Go(func() {
		_ = k.Run(ctx, func(keys [][]byte) {
			out.mu.Lock()
			defer out.mu.Unlock()
			out.keys = keys
		})
	})
	if writer {
		wg.Go(func() { _ = k.Seal(ctx) })
	}
	return out
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// Every node gets the one key, also one that comes later and one that starts again; a
// writer that cannot open the key makes a new one for all; and no key can be read in the
// API.
func TestEveryNodeGetsTheKeyOfHeartbeats(t *testing.T) {
	var nodes []*corev1.Node
	for _, n := range []string{"node1", "node2", "node3", "node4"} {
		nodes = append(nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, UID: "u-1"}})
	}
	c := fake.NewClientset(nodes[0], nodes[1], nodes[2], nodes[3])
	dir := t.TempDir()
	file := func(node string) string { return filepath.Join(dir, node) }
	first := peer(t, c, "node1", file("node1"), true)
	second := peer(t, c, "node2", file("node2"), false)
	same := func(a, b *keysOf) func() bool {
		return func() bool {
			x, y := a.get(), b.get()
			return len(x) > 0 && len(y) > 0 && bytes.Equal(x[0], y[0])
		}
	}
	soon(t, "node1 and node2 have a key", same(first, second))
	third := peer(t, c, "node3", file("node3"), false)
	soon(t, "node3 has it too", same(first, third))
	key := first.get()[0]
	list, err := c.CoordinationV1().Leases(DNSNamespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 3 {
		t.Fatalf("%d leases, %v", len(list.Items), err)
	}
	for _, l := range list.Items {
		if len(l.OwnerReferences) != 1 || l.OwnerReferences[0].Kind != "Node" {
			t.Errorf("lease %s is owned by %v", l.Name, l.OwnerReferences)
		}
		for name, v := range l.Annotations {
			if strings.Contains(v, string(key)) {
				t.Errorf("lease %s: annotation %s shows the key", l.Name, name)
			}
		}
	}
	first.stop()
	again := peer(t, c, "node1", file("node1"), true)
	soon(t, "node1 has the same key after a restart", same(again, second))
	if !bytes.Equal(again.get()[0], key) {
		t.Error("a restart of the writer changed the key")
	}
	again.stop()
	newcomer := peer(t, c, "node4", file("node4"), true) // elected without ever having had the key
	soon(t, "a writer without the key makes one for all", same(newcomer, second))
	if bytes.Equal(newcomer.get()[0], key) {
		t.Error("the newcomer has a key that nobody sealed to it")
	}
	if keys := second.get(); len(keys) != 2 || !bytes.Equal(keys[1], key) {
		t.Error("the key from before is no longer understood")
	}
}

// A damaged key is named and made anew; a disk that takes nothing stops no agent.
func TestAPeerKeyThatCannotBeReadIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "peer-key")
	for _, text := range []string{"abc\n", "", strings.Repeat("0", 63), strings.Repeat("z", 64), strings.Repeat("\x00", 64)} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		k := &PeerKeys{File: file, Log: slog.New(slog.NewTextHandler(&said, nil))}
		if err := k.Load(); err != nil || !strings.Contains(said.String(), file) || !strings.Contains(said.String(), "64 hexadecimal digits are allowed") {
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
