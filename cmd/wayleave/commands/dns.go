//go:build linux

package commands

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/dns"
	"wayleave.dev/internal/cli"
	"wayleave.dev/internal/objectref"
)

// dnsCommands are the commands below `wayleave dns`, which ask the server at a socket.
func dnsCommands(socket string) []*cobra.Command {
	old := importCorefileCommand("import-corefile FILE|-")
	old.Hidden = true // import corefile has replaced it
	return []*cobra.Command{dnsQueryCommand(socket), dnsLogCommand(socket), old}
}

func dnsQueryCommand(socket string) *cobra.Command {
	var as string
	var out cli.Output
	c := &cobra.Command{
		Use:   "query --as pod/NAMESPACE/NAME NAME [TYPE]",
		Short: "Show what a pod of this node gets for a name: each step of its search, and where the answer comes from",
		Example: "  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns query --as " +
			"pod/default/web google.com\n" +
			"  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns query --as " +
			"pod/default/web backend AAAA",
		Args: mustBe(1, 2, "NAME is needed, and a TYPE such as AAAA is allowed"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if as == "" {
				return cli.NoAnswer(errors.New("--as: not given; the pod that asks is needed, as pod/NAMESPACE/NAME"))
			}
			pod, err := objectref.Parse(as, "", objectref.Pod)
			if err != nil {
				return cli.NoAnswer(fmt.Errorf("--as: %w", err))
			}
			qtype := "A"
			if len(args) > 1 {
				qtype = args[1]
			}
			text, err := dns.Get(cmd.Context(), socket, dns.QueryPath(pod.Path(), args[0], qtype))
			if err != nil {
				return err
			}
			return printLines(cmd, &out, text)
		},
	}
	c.Flags().StringVar(&as, "as", "", "the pod that asks: pod/NAMESPACE/NAME")
	out.Flag(c)
	return c
}

func dnsLogCommand(socket string) *cobra.Command {
	var as, name string
	var d time.Duration
	var out cli.Output
	c := &cobra.Command{
		Use:   "log [--pod pod/NAMESPACE/NAME] [--name NAME] [--for 1m]",
		Short: "Show the queries of one pod of this node, or for one name, as they come",
		Example: "  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns log --pod " +
			"pod/default/web --for 5m\n" +
			"  kubectl -n kube-system exec POD_OF_THE_NODE -c dns -- /wayleave dns log --name google.com",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if as == "" && name == "" {
				return cli.NoAnswer(errors.New("name the queries: --pod pod/NAMESPACE/NAME, --name NAME, or both"))
			}
			pod := ""
			if as != "" {
				ref, err := objectref.Parse(as, "", objectref.Pod)
				if err != nil {
					return cli.NoAnswer(fmt.Errorf("--pod: %w", err))
				}
				pod = ref.Path()
			}
			body, err := dns.Open(cmd.Context(), socket, dns.LogPath(pod, name, d))
			if err != nil {
				return err
			}
			defer body.Close()
			return follow(cmd, &out, body)
		},
	}
	c.Flags().StringVar(&as, "pod", "", "only the queries of this pod: pod/NAMESPACE/NAME")
	c.Flags().StringVar(&name, "name", "", "only queries for this name, also with a search domain behind it")
	c.Flags().DurationVar(&d, "for", time.Minute, "how long, 1h at most")
	out.Flag(c)
	return c
}

// follow prints lines as they come: in JSON an object for each line, in YAML a document.
func follow(cmd *cobra.Command, out *cli.Output, body io.Reader) error {
	if out.IsText() {
		_, err := io.Copy(cmd.OutOrStdout(), body)
		return err
	}
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		raw, err := json.Marshal(map[string]string{"line": strings.TrimRight(lines.Text(), "\r")})
		if err != nil {
			return err
		}
		if !out.IsJSON() {
			raw = append([]byte("---\n"), raw...)
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", raw); err != nil {
			return err
		}
	}
	return lines.Err()
}
