//go:build linux

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/internal/memlimit"
	bgpspeaker "wayleave.dev/loadbalancer/bgp/speaker"
	"wayleave.dev/loadbalancer/l2/speaker"
	"wayleave.dev/podnetwork/wireguard/frames"
	"wayleave.dev/podnetwork/wireguard/process"
	kubesource "wayleave.dev/source/kubernetes"
	"wayleave.dev/statusserver"
)

func agentCommand() *cobra.Command {
	var settings string
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run this node's network (what the DaemonSet starts)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := memlimit.Set(1, 2); err != nil {
				fmt.Fprintln(os.Stderr, "going on without:", err)
			}
			return agent.Run(cmd.Context(), options(settings))
		},
	}
	settingsFlag(c, &settings)
	return c
}

func writerCommand() *cobra.Command {
	var settings string
	c := &cobra.Command{
		Use:   "writer",
		Short: "Write cluster-wide objects (what the Deployment wayleave-writer starts)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := memlimit.Set(7, 8); err != nil {
				fmt.Fprintln(os.Stderr, "going on without:", err)
			}
			return agent.RunWriter(cmd.Context(), options(settings))
		},
	}
	settingsFlag(c, &settings)
	return c
}

func settingsFlag(c *cobra.Command, settings *string) {
	c.Flags().StringVar(settings, "config", agent.ConfigDir,
		"the settings: a file, or the folder of a mounted ConfigMap")
}

func options(settings string) agent.Options {
	return agent.Options{Settings: settings, Version: version, Features: features.All()}
}

// discoverCommand is the init container: it sees files of the node, for a moment and without a
// socket, so that the agent need not.
func discoverCommand() *cobra.Command {
	var root, out string
	c := &cobra.Command{
		Use:   "discover",
		Short: "Write down what this node's kubelet was told (the init container)",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return kubesource.Host{Root: root}.Discover().Write(out)
		},
	}
	c.Flags().StringVar(&root, "root", "/host", "where folders of the node are mounted")
	c.Flags().StringVar(&out, "out", agent.NodeFacts, "the file to write")
	return c
}

// l2Command and statusServerCommand are the processes that the agent starts for hostile bytes: they have no
// capabilities, and are told everything over descriptor 3.
func l2Command() *cobra.Command {
	return childCommand("l2", "Answer ARP and NDP for load balancers' addresses (the agent starts it)", speaker.Main)
}

func bgpCommand() *cobra.Command {
	return childCommand("bgp", "Hold BGP sessions with routers (the agent starts it)", bgpspeaker.Main)
}

func statusServerCommand() *cobra.Command {
	return childCommand("status-server", "Serve health and metrics of the node (the agent starts it)",
		statusserver.Main)
}

// wireguardCommand is WireGuard where the kernel has none; the agent starts a process for each device.
func wireguardCommand() *cobra.Command {
	return childCommand(frames.Process, "Encrypt between nodes in user space (the agent starts it)", process.Main)
}

func childCommand(name, short string, run func() error) *cobra.Command {
	return &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return run() },
	}
}
