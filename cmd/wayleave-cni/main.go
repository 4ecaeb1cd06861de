// Command wayleave-cni is the CNI plugin that the container runtime executes: a
// thin client of the agent on its node.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"wayleave.dev/podnetwork/cni"
)

func main() {
	p := plugin{socket: env("WAYLEAVE_CNI_SOCKET", cni.Socket), tombstones: env("WAYLEAVE_CNI_TOMBSTONES", cni.Tombstones)}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    func(a *skel.CmdArgs) error { return p.run("ADD", a) },
		Check:  func(a *skel.CmdArgs) error { return p.run("CHECK", a) },
		Del:    func(a *skel.CmdArgs) error { return p.del(a) },
		GC:     func(a *skel.CmdArgs) error { return p.run("GC", a) },
		Status: func(a *skel.CmdArgs) error { return p.run("STATUS", a) },
	}, version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), "wayleave-cni: a client of the wayleave agent of this node")
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

type plugin struct{ socket, tombstones string }

// patience is how long the runtime waits for the agent.
const patience = 30 * time.Second

func (p plugin) call(command string, a *skel.CmdArgs) (cni.Response, error) {
	args, err := cni.ParseArgs(a.Args)
	if err != nil {
		return cni.Response{}, err
	}
	var ns *os.File
	if a.Netns != "" {
		ns, err = os.Open(a.Netns)
		if err != nil && (command == "ADD" || command == "CHECK") {
			return cni.Response{}, cni.Failure(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %v", err)
		}
		if err == nil {
			defer ns.Close()
		}
	}
	return cni.Call(p.socket, cni.Request{Command: command, ContainerID: a.ContainerID, IfName: a.IfName, Args: args, Config: a.StdinData}, ns, patience)
}

func (p plugin) run(command string, a *skel.CmdArgs) error {
	r, err := p.call(command, a)
	if errors.Is(err, cni.ErrNoAgent) {
		code := uint(types.ErrTryAgainLater)
		if command == "STATUS" {
			code = 50 // the plugin is not available
		}
		return cni.Failure(code, "%v", err)
	}
	if err != nil {
		return err
	}
	if r.Error != nil {
		return r.Error
	}
	if r.Result != nil {
		return printResult(r.Result, a.Netns)
	}
	return nil
}

// printResult puts the sandbox's path, which only the plugin knows, into the
// result.
func printResult(raw json.RawMessage, sandbox string) error {
	var result map[string]any
	if err := json.Unmarshal(raw, &result); err != nil {
		return fmt.Errorf("the agent's answer: %w", err)
	}
	if list, ok := result["interfaces"].([]any); ok {
		for _, i := range list {
			if m, ok := i.(map[string]any); ok && m["sandbox"] != nil {
				m["sandbox"] = sandbox
			}
		}
	}
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(result)
}

// del succeeds without an agent, too: the runtime could not end pods otherwise.
// The link goes with the namespace or here; the agent frees the lease when it is
// back.
func (p plugin) del(a *skel.CmdArgs) error {
	r, err := p.call("DEL", a)
	if err == nil {
		if r.Error != nil {
			return r.Error
		}
		return nil
	}
	if !errors.Is(err, cni.ErrNoAgent) {
		return err
	}
	return errors.Join(p.bury(a), removeLink(a.Netns, a.IfName))
}

// bury leaves a tombstone, whole or not at all.
func (p plugin) bury(a *skel.CmdArgs) error {
	if err := os.MkdirAll(p.tombstones, 0o700); err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]string{"container": a.ContainerID, "interface": a.IfName})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	file := filepath.Join(p.tombstones, hex.EncodeToString(sum[:16]))
	if err := os.WriteFile(file+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// removeLink deletes the pod's interface, and with it the node's end. A namespace
// or an interface that is gone is no error.
func removeLink(path, name string) error {
	if path == "" {
		return nil
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return nil
	}
	return h.LinkDel(link)
}
