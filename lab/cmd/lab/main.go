// Command lab brings up a real Kubernetes of several nodes on this machine,
// with no Docker and no registry, and takes it down without a trace.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"wayleave.dev/lab/cluster"
	"wayleave.dev/lab/demo"
	"wayleave.dev/lab/place"
	"wayleave.dev/lab/progress"
)

// interrupted is the exit status of programs that Ctrl-C ended.
const interrupted = 130

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command().ExecuteContext(ctx)
	if status := exitStatus(0); errors.As(err, &status) {
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", strings.TrimPrefix(err.Error(), "lab: "))
		if ctx.Err() != nil {
			os.Exit(interrupted)
		}
		os.Exit(1)
	}
}

// exitStatus is the end of a command that "lab exec" ran: the command itself
// has said what there was to say.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "lab", Short: "a real Kubernetes on one machine, for tests and demonstrations",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(up(), down(), status(), loadImage(), execute(), cable(), kubeconfig(), endToEnd(),
		tour(), internal())
	return root
}

// open returns the lab that the environment names.
func open() (*cluster.Lab, error) {
	dirs, err := place.Find(os.Getenv)
	if err != nil {
		return nil, err
	}
	return &cluster.Lab{Dirs: dirs, Progress: progress.New(os.Stderr), Out: os.Stdout}, nil
}

func up() *cobra.Command {
	settings := cluster.Settings{}
	cmd := &cobra.Command{
		Use: "up", Short: "bring a lab up", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			return lab.Up(cmd.Context(), settings)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&settings.Nodes, "nodes", 3, "how many nodes")
	flags.BoolVar(&settings.DualStack, "dual-stack", false, "IPv4 and IPv6")
	flags.StringVar(&settings.Network, "network", cluster.Wayleave,
		"wayleave: from this checkout; none: nodes without any; upstream: kube-proxy, CoreDNS and the bridge plugin")
	flags.BoolVar(&settings.Keep, "keep", false, "leave a lab that failed to come up as it is, for a look at it")
	flags.StringVar(&settings.ProxyMode, "proxy-mode", "nftables", "of upstream's kube-proxy: nftables or iptables")
	return cmd
}

func down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "take the lab down, leaving nothing but the cache", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			return lab.Down(cmd.Context())
		},
	}
}

func status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "say what is up", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			return lab.Status(cmd.Context())
		},
	}
}

func loadImage() *cobra.Command {
	return &cobra.Command{
		Use: "load IMAGE.tar …", Short: "put the images of docker-archives into every node",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, archives []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			for _, archive := range archives {
				if err := lab.Load(cmd.Context(), archive); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func execute() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec NODE|control|outside|client [COMMAND …]",
		Short: "run a command, or a shell, on a machine of the lab",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			// Ctrl-C is for the command; it ends when it wants to.
			command := args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:] // as kubectl exec has it
			}
			err = lab.Exec(context.WithoutCancel(cmd.Context()), args[0], command)
			if ended := (*exec.ExitError)(nil); errors.As(err, &ended) && ended.Exited() {
				return exitStatus(ended.ExitCode())
			}
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func cable() *cobra.Command {
	return &cobra.Command{
		Use: "cable NODE up|down", Short: "plug a node into the network, or pull its cable", Args: cobra.ExactArgs(2),
		ValidArgs: []string{"up", "down"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "up" && args[1] != "down" {
				return fmt.Errorf("cable: found %q; up and down are allowed", args[1])
			}
			lab, err := open()
			if err != nil {
				return err
			}
			return lab.Cable(cmd.Context(), args[0], args[1] == "up")
		},
	}
}

func kubeconfig() *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "print the path of the lab's kubeconfig", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			file, err := lab.Kubeconfig()
			if err != nil {
				return err
			}
			fmt.Println(file)
			return nil
		},
	}
}

func endToEnd() *cobra.Command {
	tests := cluster.Tests{}
	cmd := &cobra.Command{
		Use:   "e2e FILTER",
		Short: "run those of Kubernetes' own end-to-end tests whose names match a regular expression",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			tests.Filter = args[0]
			return lab.Test(cmd.Context(), tests)
		},
	}
	cmd.Flags().IntVar(&tests.Procs, "procs", 4, "how many at a time")
	cmd.Flags().BoolVar(&tests.CoreDNS, "coredns", false,
		"build CoreDNS into the image of the tests: some run a DNS server of their own")
	cmd.Flags().StringVar(&tests.Skip, "skip", "", "leave out those that match this expression")
	return cmd
}

func tour() *cobra.Command {
	long := false
	cmd := &cobra.Command{
		Use: "demo [CHECK …]", Short: "play the guided tour on the lab that is up, or some checks of it",
		RunE: func(cmd *cobra.Command, only []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			return lab.Demo(cmd.Context(), demo.Selection{Only: only, Long: long})
		},
	}
	cmd.Flags().BoolVar(&long, "all", false, "play the long checks too")
	return cmd
}
