package podnetwork

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wayleave.dev/agent"
	"wayleave.dev/kernel/link"
	"wayleave.dev/model"
)

// bridgesAgain is how often it is looked whether bridges of pods show their packets.
const bridgesAgain = 30 * time.Second

// watchBridges says when another CNI has pods on a bridge whose packets no rule sees: policies would not hold between
// two pods of the node, and replies of Services would come from another address.
func watchBridges(ctx context.Context, n *agent.Node) error {
	links, err := link.NewKernel(int(n.NetNS.Fd()), "")
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		pods, nodes := agent.PodsAndNode(n.Store.Snapshot(), n.Name)
		bridges, err := links.PodBridges(ctx, pods, nodes)
		n.SetCondition("bridges of pods", err)
		if err == nil {
			n.Problems.Set("bridges", "", blindBridges(n.Sysctl, n.Name, bridges))
		}
		select {
		case <-ctx.Done():
		case <-time.After(bridgesAgain):
		}
	}
	return ctx.Err()
}

// blindBridges are the problems of a node whose kernel shows packets within bridges to no rule. sysctl is a mount of
// /proc/sys/net.
func blindBridges(sysctl, node string, bridges []string) (problems []model.Problem) {
	if len(bridges) == 0 {
		return nil
	}
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		raw, err := os.ReadFile(filepath.Join(sysctl, "bridge", name))
		found := strings.TrimSpace(string(raw))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			found = "not there (the module br_netfilter is not loaded)"
		case err != nil:
			found = err.Error()
		case found == "1":
			continue
		}
		problems = append(problems, model.Problem{Kind: "Node", Object: model.Name{Name: node},
			Field: "net.bridge." + name,
			Reason: fmt.Sprintf("it is %s, and 1 is needed: packets between pods on the bridge %s pass "+
				"NetworkPolicies and Services by; modprobe br_netfilter && sysctl -w net.bridge.%s=1", found,
				strings.Join(bridges, ", "), name)})
	}
	return problems
}
