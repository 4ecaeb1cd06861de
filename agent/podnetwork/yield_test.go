package podnetwork

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/config"
	"wayleave.dev/podnetwork"
)

const calico = `{"name": "k8s-pod-network", "plugins": [{"type": "calico"}, {"type": "portmap"}]}`

// yields makes a node with these files in its folder of CNI configurations, and has the feature decide.
func yields(t *testing.T, files map[string]string, change func(*agent.Node)) (*Feature, *agent.Node) {
	t.Helper()
	dir := t.TempDir()
	n := &agent.Node{Core: agent.NewCore(slog.New(slog.NewTextHandler(io.Discard, nil)), nil, config.Default(), nil),
		Name: "node1", Dirs: agent.Dirs{CNIConf: filepath.Join(dir, "net.d"), State: filepath.Join(dir, "state")}}
	for _, d := range []string{n.CNIConf, n.State} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.CNIConf, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(n)
	}
	f := New()
	f.Yield(n)
	return f, n
}

func TestThePodNetworkIsLeftToAnotherCNI(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		other string
	}{
		{"an empty folder", nil, ""},
		{"Calico", map[string]string{"10-calico.conflist": calico}, "calico, portmap"},
		{"Cilium", map[string]string{"05-cilium.conflist": `{"plugins": [{"type": "cilium-cni"}]}`}, "cilium-cni"},
		{"a single plugin", map[string]string{"10-weave.conf": `{"type": "weave-net"}`}, "weave-net"},
		{"after Wayleave's name", map[string]string{"99-late.json": `{"type": "bridge"}`}, "bridge"},
		{"Podman and CRI-O", map[string]string{"87-podman-bridge.conflist": `{"plugins": [{"type": "bridge"}]}`,
			"100-crio-bridge.conflist": `{"plugins": [{"type": "bridge"}]}`}, ""},
		{"loopback only", map[string]string{"99-loopback.conf": `{"type": "loopback"}`}, ""},
		{"no configuration", map[string]string{"10-calico.conflist.bak": calico, "calico-kubeconfig": "x",
			"cni.yaml": "kind: DaemonSet"}, ""},
		{"damaged", map[string]string{"10-calico.conflist": "{"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, n := yields(t, tc.files, nil)
			if on := n.Config.PodNetwork.Enabled; on != (tc.other == "") || !strings.Contains(f.other, tc.other) {
				t.Errorf("podnetwork is %v, because of %q", on, f.other)
			}
			said := len(n.Problems.List()) > 0 && strings.Contains(n.Problems.List()[0].Reason, "podnetwork.takeOver")
			if said != (tc.other != "") {
				t.Errorf("the node says %v", n.Problems.List())
			}
		})
	}
}

// A node that Wayleave serves keeps its pod network, whatever another program writes: an upgrade must not take it away.
func TestAServedNodeKeepsItsPodNetwork(t *testing.T) {
	other := map[string]string{"10-calico.conflist": calico}
	for name, change := range map[string]func(*agent.Node){
		"a configuration of Wayleave": func(n *agent.Node) {
			_ = os.WriteFile(filepath.Join(n.CNIConf, podnetwork.ConfName), []byte("{}"), 0o600)
		},
		"leases":          func(n *agent.Node) { _ = os.WriteFile(filepath.Join(n.State, "leases"), nil, 0o600) },
		"the setting":     func(n *agent.Node) { n.Config.PodNetwork.TakeOver = true },
		"nothing of that": nil,
	} {
		_, n := yields(t, other, change)
		if on := n.Config.PodNetwork.Enabled; on != (change != nil) {
			t.Errorf("%s: podnetwork is %v", name, on)
		}
	}
}

// The agent starts anew once the other CNI is gone, and not for a file that is replaced.
func TestThePodNetworkStartsWhenTheOtherCNIHasGone(t *testing.T) {
	f, n := yields(t, map[string]string{"10-calico.conflist": calico}, nil)
	file := filepath.Join(n.CNIConf, "10-calico.conflist")
	synctest.Test(t, func(t *testing.T) {
		done := make(chan error, 1)
		go func() { done <- f.Idle(n)[0].Run(t.Context()) }()
		replaced := file + ".tmp"
		for range 3 {
			time.Sleep(lookEvery - time.Second)
			if err := os.Rename(file, replaced); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Second) // a look sees no file
			if err := os.Rename(replaced, file); err != nil {
				t.Error(err)
			}
			time.Sleep(lookEvery)
		}
		select {
		case err := <-done:
			t.Fatalf("it ended while the other CNI is there: %v", err)
		default:
		}
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * lookEvery)
		if err := <-done; err != errOtherCNIGone {
			t.Errorf("it ended with %v", err)
		}
	})
}
