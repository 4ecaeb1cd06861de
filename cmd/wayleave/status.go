package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func statusCommand() *cobra.Command {
	var asJSON, vips, policies, ofWriter bool
	var socket string
	c := &cobra.Command{
		Use:   "status",
		Short: "Say what is programmed on this node, and what is wrong",
		Long: "Asks the agent that owns this node. Run it on the node, or by\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave status",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ofWriter {
				socket = writerSocket
			}
			raw, code, err := ask(cmd.Context(), socket, "/status")
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
			var r report
			if err := json.Unmarshal([]byte(raw), &r); err != nil {
				return fmt.Errorf("the agent's answer: %w", err)
			}
			if vips {
				fmt.Fprint(cmd.OutOrStdout(), r.vips(time.Now()))
				return nil
			}
			if policies {
				fmt.Fprint(cmd.OutOrStdout(), r.policies())
				return nil
			}
			fmt.Fprint(cmd.OutOrStdout(), r.text(time.Now()))
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for machines")
	c.Flags().BoolVar(&vips, "vips", false, "who answers for the addresses of load balancers, and since when")
	c.Flags().BoolVar(&policies, "policies", false,
		"which pods of this node are isolated, by which policies, and what was dropped")
	c.Flags().BoolVar(&ofWriter, "writer", false,
		"ask the writer of this pod: kubectl -n kube-system exec deploy/wayleave-writer -- /wayleave status --writer")
	c.Flags().StringVar(&socket, "socket", agentSocket, "the agent's socket")
	return c
}

func healthCommand() *cobra.Command {
	var live bool
	c := &cobra.Command{
		Use:       "health agent|dns|proxy|writer",
		Short:     "The probes of the kubelet: exit 0 when ready",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"agent", "dns", "proxy", "writer"},
		RunE: func(cmd *cobra.Command, args []string) error {
			socket, path := healthSocket, "/readyz"
			switch args[0] {
			case "dns":
				socket = dnsProbes
			case "proxy":
				socket = proxyProbes
			case "writer":
				socket = writerSocket
			}
			if live {
				path = "/livez"
			}
			text, code, err := ask(cmd.Context(), socket, path)
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

// ask does one GET over a unix socket.
func ask(ctx context.Context, socket, path string) (body string, code int, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://wayleave"+path, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return string(raw), resp.StatusCode, err
}

// listenUnix makes a socket that only root may use, in place of a stale one.
func listenUnix(path string) (net.Listener, error) { return listenMode(path, 0o600) }

// listenChild makes the socket that the container dns or proxy connects to. The feed asks the
// kernel who calls; the mode only lets that user try.
func listenChild(path string) (*net.UnixListener, error) {
	// The kubelet makes an emptyDir writable for all. The container mounts it read-only; this is
	// for a mount that is not.
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return listenMode(path, 0o666)
}

func listenMode(path string, mode os.FileMode) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
