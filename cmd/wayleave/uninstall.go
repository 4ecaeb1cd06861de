package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/config"
	"wayleave.dev/dns"
	"wayleave.dev/internal/owner"
	"wayleave.dev/kernel/conntrack"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	policynft "wayleave.dev/networkpolicy/nftables"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/service"
	"wayleave.dev/service/dataplane"
)

func uninstallCommand() *cobra.Command {
	var onlyVerify bool
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take every rule, route, link, address, sysctl and file of ours off this node",
		Long: "Run it on the node as root, after the DaemonSet is deleted:\n" +
			"the program is in the image, and copied out by `ctr run` or `docker cp`.\n" +
			"It ends by looking whether anything is left; --verify only looks.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			n, err := thisNode()
			if err != nil {
				return err
			}
			defer n.close()
			if !onlyVerify {
				if err := n.uninstall(ctx); err != nil {
					return err
				}
			}
			if err := n.verify(ctx); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "nothing of Wayleave is left on this node")
			return nil
		},
	}
	c.Flags().BoolVar(&onlyVerify, "verify", false, "change nothing; fail when something of Wayleave is on this node")
	return c
}

// nodeState is all that Wayleave has on a node.
type nodeState struct {
	ns       *os.File
	nft      *nft.Kernel
	links    *link.Kernel
	stateDir string
	runDir   string
	pods     podnetwork.Config
	planes   dataplane.Planes
	policies *policynft.Mode
}

func thisNode() (*nodeState, error) {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	return newNodeState(ns, stateDir, runDir, podnetwork.Config{Socket: call.Socket, Tombstones: call.Tombstones,
		Sysctl: "/proc/sys/net", BinDir: cniBinDir, ConfDir: cniConfDir})
}

// newNodeState takes over the descriptor of the node's network namespace.
func newNodeState(ns *os.File, stateDir, runDir string, pods podnetwork.Config) (*nodeState, error) {
	n := &nodeState{ns: ns, stateDir: stateDir, runDir: runDir, pods: pods}
	var err error
	if n.nft, err = nft.NewKernel(int(ns.Fd())); err != nil {
		return nil, err
	}
	if n.links, err = link.NewKernel(int(ns.Fd()), stateDir+"/dns-addresses"); err != nil {
		return nil, err
	}
	n.pods.NSFD, n.pods.StateDir, n.pods.Kernel, n.pods.NFT = int(ns.Fd()), stateDir, n.links, n.nft
	if n.pods.Firewall, err = newFirewall(int(ns.Fd()), n.nft, ""); err != nil {
		return nil, err
	}
	track, err := conntrack.NewKernel(int(ns.Fd()))
	if err != nil {
		return nil, err
	}
	n.policies = policynft.New(n.nft, conntrack.NewTracker(int(ns.Fd())))
	n.planes = newPlanes(int(ns.Fd()), n.nft, track, config.Default(), stateDir)
	return n, nil
}

// modes are those that may have something on the node. Chains with kube-proxy's names are
// kube-proxy's where it runs.
func (n *nodeState) modes(ctx context.Context) ([]service.Mode, error) {
	if _, found := kubeProxy(ctx, (&net.Dialer{}).DialContext); found {
		return []service.Mode{n.planes.Nftables()}, nil
	}
	return n.planes.Others(nil)
}

func (n *nodeState) close() { n.ns.Close() }

// verify lists what is left as one error.
func (n *nodeState) verify(ctx context.Context) error {
	left, err := n.pods.Firewall.Accepting(ctx, doorOwner)
	for i, chain := range left {
		left[i] = "rules in " + chain
	}
	add := func(what []string, err error) error { left = append(left, what...); return err }
	err = errors.Join(err,
		add(podnetwork.Remains(ctx, n.pods)),
		add(dns.Remains(ctx, n.links, n.nft)),
		add(n.policies.Remains(ctx)))
	modes, modesErr := n.modes(ctx)
	err = errors.Join(err, modesErr)
	for _, m := range modes {
		err = errors.Join(err, add(m.Remains(ctx)))
	}
	for _, dir := range []string{n.stateDir, n.runDir} {
		if _, statErr := os.Lstat(dir); statErr == nil {
			left = append(left, "folder "+dir)
		} else if !errors.Is(statErr, fs.ErrNotExist) {
			err = errors.Join(err, statErr)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot tell whether something is left: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("left on this node: %s", strings.Join(left, ", "))
	}
	return nil
}

func (n *nodeState) uninstall(ctx context.Context) error {
	if _, err := os.Stat(n.runDir); err == nil {
		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		lock, err := owner.Acquire(wait, n.runDir+"/owner.lock", nil)
		if err != nil {
			return fmt.Errorf("an agent still owns this node; delete the DaemonSet first: %w", err)
		}
		defer lock.Release()
	}
	modes, err := n.modes(ctx)
	errs := []error{err}
	for _, m := range modes {
		errs = append(errs, m.Remove(ctx))
	}
	_, closed := n.pods.Firewall.Withdraw(ctx, doorOwner)
	return errors.Join(append(errs,
		podnetwork.Uninstall(ctx, n.pods),
		dns.Uninstall(ctx, n.links, n.nft),
		n.policies.Remove(ctx), closed,
		os.RemoveAll(n.stateDir), os.RemoveAll(n.runDir))...)
}
