//go:build linux

package commands

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"wayleave.dev/agent"
	"wayleave.dev/internal/cli"
	"wayleave.dev/internal/logging"
)

func logLevelCommand() *cobra.Command {
	var out cli.Output
	var socket string
	c := &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show or change the log level of this container",
		Long: "Run it in a container of Wayleave: agent (also for l2 and status-server), dns, proxy or writer.\n" +
			"The level holds until the container restarts, or the agent of the node starts with other settings.\n" +
			"The setting logLevel changes it permanently.",
		Example: "  kubectl -n kube-system exec POD_OF_THE_NODE -c agent -- /wayleave log-level debug\n" +
			"  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave log-level",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: logging.Levels(),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := agent.SocketOfContainer(socket)
			if err != nil {
				return err
			}
			ask, path := agent.Ask, logging.Path
			if len(args) > 0 {
				ask, path = agent.Tell, logging.LevelPath(args[0])
			}
			text, code, err := ask(cmd.Context(), at, path)
			if err != nil {
				return cli.NoAnswer(fmt.Errorf("%s: %w", at, err))
			}
			if code != http.StatusOK {
				return errors.New(strings.TrimSpace(text))
			}
			return out.Print(cmd.OutOrStdout(), text, map[string]string{"level": strings.TrimSpace(text)})
		},
	}
	out.Flag(c)
	c.Flags().StringVar(&socket, "socket", "", "the socket of a process; default: that of this container")
	return c
}
