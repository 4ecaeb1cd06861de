package podnetwork

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/model"
	"wayleave.dev/podnetwork"
)

// Yield implements agent.Yielder: on a node that has the configuration of another CNI and nothing of Wayleave's pod
// network, the pod network stays off. The decision holds until the agent ends. A node that has served pods goes on.
func (f *Feature) Yield(n *agent.Node) {
	if !n.Config.PodNetwork.Enabled || n.Config.PodNetwork.TakeOver || served(n.Dirs) {
		return
	}
	if f.other = otherCNI(n.CNIConf); f.other == "" {
		return
	}
	n.Config.PodNetwork.Enabled = false
	reason := fmt.Sprintf("%s is the configuration of another CNI, so that one stays the pod network of this node and "+
		"podnetwork is off; to switch over, remove that CNI and the file, or set podnetwork.takeOver to true "+
		"(docs/migrate/README.md)", f.other)
	p := n.Problem("", reason)
	p.Note, p.Event = true, "AnotherCNI"
	n.Problems.Set("podnetwork", "another CNI", []model.Problem{p})
	n.SetFact(f.Name(), "another CNI", "off: "+reason)
}

// served reports whether this node has had Wayleave's pod network: its configuration or its leases.
func served(d agent.Dirs) bool {
	for _, name := range []string{filepath.Join(d.CNIConf, podnetwork.ConfName), filepath.Join(d.State, "leases")} {
		if _, err := os.Stat(name); err == nil {
			return true
		}
	}
	return false
}

// lookEvery is how often a node whose pod network is off looks whether the other CNI has gone.
const lookEvery = 5 * time.Second

var errOtherCNIGone = errors.New("the other CNI's configuration is gone: the agent starts again with the pod network")

// Idle implements agent.Idler: when the other CNI's configuration has been gone for two looks, the agent starts anew.
// It serves no pod until then, so nothing is interrupted.
func (f *Feature) Idle(n *agent.Node) []agent.Part {
	if f.other == "" {
		return nil
	}
	return []agent.Part{{Name: "another CNI", Run: func(ctx context.Context) error {
		for gone := 0; gone < 2; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(lookEvery):
			}
			if gone++; otherCNI(n.CNIConf) != "" {
				gone = 0
			}
		}
		return errOtherCNIGone
	}}}
}

// local are configurations that programs bring along for containers outside of Kubernetes: Podman, CRI-O's package,
// nerdctl.
func local() []string {
	return []string{"87-podman*", "100-crio*", "11-crio*", "nerdctl-*"}
}

// otherCNI names the first configuration of another CNI in a folder, empty for none.
func otherCNI(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, e := range entries { // in order of names, as runtimes read them
		name := e.Name()
		ext := filepath.Ext(name)
		if e.IsDir() || name == podnetwork.ConfName || ext != ".conf" && ext != ".conflist" && ext != ".json" ||
			slices.ContainsFunc(local(), func(p string) bool { ok, _ := path.Match(p, name); return ok }) {
			continue
		}
		if types := pluginTypes(filepath.Join(dir, name)); len(types) > 0 {
			return fmt.Sprintf("%s (%s)", filepath.Join(dir, name), strings.Join(types, ", "))
		}
	}
	return ""
}

// maxConf bounds a configuration.
const maxConf = 1 << 20

// pluginTypes are the plugins that a configuration names, other than loopback; none if it is damaged.
func pluginTypes(file string) (types []string) {
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxConf {
		return nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	type plugin struct {
		Type string `json:"type"`
	}
	var conf struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if json.Unmarshal(raw, &conf) != nil {
		return nil
	}
	for _, p := range append(conf.Plugins, conf.plugin) {
		if p.Type != "" && p.Type != "loopback" {
			types = append(types, p.Type)
		}
	}
	return types
}
