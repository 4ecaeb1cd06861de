//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/agent/features"
	"wayleave.dev/internal/listeners"
)

func statusCommand() *cobra.Command {
	var asJSON, ofWriter bool
	var socket string
	lists := map[string]*bool{}
	c := &cobra.Command{
		Use:   "status",
		Short: "Say what is programmed on this node, and what is wrong",
		Long: "Asks the agent that owns this node. Run it on the node, or by\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave status",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ofWriter {
				socket = agent.WriterSocket
			}
			raw, code, err := agent.Ask(cmd.Context(), socket, "/status")
			if err != nil {
				return fmt.Errorf("the agent does not answer on %s: %w", socket, err)
			}
			if code != http.StatusOK {
				return fmt.Errorf("the agent says: %s", raw)
			}
			if asJSON {
				fmt.Fprint(cmd.OutOrStdout(), raw)
				return nil
			}
			var r agent.Report
			if err := json.Unmarshal([]byte(raw), &r); err != nil {
				return fmt.Errorf("the agent's answer: %w", err)
			}
			for _, l := range tables() {
				if *lists[l.Name] {
					text, err := l.Text(r.Lists[l.Name], time.Now())
					fmt.Fprint(cmd.OutOrStdout(), text)
					return err
				}
			}
			fmt.Fprint(cmd.OutOrStdout(), r.Text(time.Now()))
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	for _, l := range tables() {
		lists[l.Name] = c.Flags().Bool(l.Name, false, l.Help)
	}
	c.Flags().BoolVar(&ofWriter, "writer", false,
		"ask the writer of this pod: kubectl -n kube-system exec deploy/wayleave-writer -- /wayleave status --writer")
	c.Flags().StringVar(&socket, "socket", agent.Socket, "the agent's socket")
	return c
}

// tables are those of features that have one.
func tables() (out []agent.List) {
	for _, f := range features.All() {
		if l, ok := f.(agent.Lister); ok {
			out = append(out, l.List())
		}
	}
	return out
}

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
	return &cobra.Command{
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
			for _, s := range own {
				fmt.Fprintln(cmd.OutOrStdout(), s)
			}
			return nil
		},
	}
}
