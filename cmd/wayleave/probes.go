//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/internal/cli"
	"wayleave.dev/internal/listeners"
)

func healthCommand() *cobra.Command {
	var live bool
	c := &cobra.Command{
		Use:       "health agent|dns|proxy|writer",
		Short:     "The probes of the kubelet: exit 0 when ready",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"agent", "dns", "proxy", "writer"},
		RunE: func(cmd *cobra.Command, args []string) error {
			socket := map[string]string{"agent": agent.HealthSocket, "dns": dnsProbes, "proxy": proxyProbes,
				"writer": agent.WriterSocket}[args[0]]
			path := "/readyz"
			if live {
				path = "/livez"
			}
			text, code, err := agent.Ask(cmd.Context(), socket, path)
			if err != nil {
				return err
			}
			if code != http.StatusOK {
				return errors.New(strings.TrimSpace(text))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&live, "live", false, "is it alive, not is it ready")
	return c
}

// listenersCommand lists the sockets of the container that it is executed in.
func listenersCommand() *cobra.Command {
	var out cli.Output
	c := &cobra.Command{
		Use:     "listeners",
		Short:   "List what the processes of this container listen on; docs/security.md says who may connect to each",
		Example: "  kubectl -n kube-system exec POD_OF_THE_NODE -c agent -- /wayleave listeners",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := listeners.Read("/proc/self/net")
			if err != nil {
				return fmt.Errorf("sockets of the node: %w", err)
			}
			own, err := listeners.Own("/proc", all)
			if err != nil {
				return fmt.Errorf("descriptors of this container: %w", err)
			}
			var b strings.Builder
			for _, s := range own {
				fmt.Fprintln(&b, s)
			}
			return out.Print(cmd.OutOrStdout(), b.String(), map[string][]string{"listeners": cli.Lines(b.String())})
		},
	}
	out.Flag(c)
	return c
}
