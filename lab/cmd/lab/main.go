// Command lab brings up a real Kubernetes of several nodes on this machine, without Docker and without a registry, and
// takes it down without a trace.
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

// exitStatus is the exit status of a command that "lab exec" ran: the command has already printed its error.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "lab", Short: "a real Kubernetes on one machine, for tests and demonstrations",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(up(), down(), status(), loadImage(), execute(), cable(), kubeconfig(), endToEnd(),
		tour(), addon(), internal())
	return root
}

// open returns the lab that the environment selects.
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
			if settings.Bare && !cmd.Flags().Changed("network") {
				settings.Network = cluster.None
			}
			if settings.File != "" { // it is read after the builds
				if _, err := os.Stat(settings.File); err != nil {
					return fmt.Errorf("--settings: %w", err)
				}
			}
			return lab.Up(cmd.Context(), settings)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&settings.Nodes, "nodes", 3, "number of nodes")
	flags.BoolVar(&settings.DualStack, "dual-stack", false, "use IPv4 and IPv6")
	flags.StringVar(&settings.Network, "network", cluster.Wayleave,
		"wayleave: from this checkout; none: nodes without a network; upstream: kube-proxy, CoreDNS and the "+
			"bridge plugin")
	flags.BoolVar(&settings.Bare, "bare", false, "machines with containerd, kubelet and kubeadm, and no cluster")
	flags.StringVar(&settings.File, "settings", "",
		"file of Wayleave's settings that differ, config.yaml of the ConfigMap wayleave-settings")
	flags.BoolVar(&settings.Keep, "keep", false, "keep a lab that failed to start, for inspection")
	flags.StringVar(&settings.ProxyMode, "proxy-mode", "nftables",
		"mode of kube-proxy in the network upstream: nftables or iptables")
	return cmd
}

func down() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "take the lab down; only the cache remains", Args: cobra.NoArgs,
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
		Use: "status", Short: "show what is up", Args: cobra.NoArgs,
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
		Use: "load IMAGE.tar …", Short: "load the images of docker-archives into every node",
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
			// Ctrl-C is for the command, which decides when it ends.
			command := args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:] // like kubectl exec
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
		Use: "cable NODE up|down", Short: "connect a node to the network, or disconnect it", Args: cobra.ExactArgs(2),
		ValidArgs: []string{"up", "down"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "up" && args[1] != "down" {
				return fmt.Errorf("cable: found %q; allowed: up, down", args[1])
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
		Short: "run Kubernetes' end-to-end tests whose names match a regular expression",
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
	cmd.Flags().IntVar(&tests.Procs, "procs", 4, "number of concurrent tests")
	cmd.Flags().BoolVar(&tests.CoreDNS, "coredns", false,
		"add CoreDNS to the image of the tests: some tests run their own DNS server")
	cmd.Flags().StringVar(&tests.Skip, "skip", "", "skip tests that match this expression")
	return cmd
}

func tour() *cobra.Command {
	long := false
	cmd := &cobra.Command{
		Use: "demo [CHECK …]", Short: "run the guided tour on the running lab, or some of its checks",
		RunE: func(cmd *cobra.Command, only []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			return lab.Demo(cmd.Context(), demo.Selection{Only: only, Long: long})
		},
	}
	cmd.Flags().BoolVar(&long, "all", false, "also run the long checks")
	return cmd
}

func addon() *cobra.Command {
	return &cobra.Command{
		Use: "addon metallb", Short: "build another program, load its images, and print the path of its manifest",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			lab, err := open()
			if err != nil {
				return err
			}
			manifest, err := lab.Addon(cmd.Context(), args[0])
			if err == nil {
				fmt.Println(manifest)
			}
			return err
		},
	}
}
