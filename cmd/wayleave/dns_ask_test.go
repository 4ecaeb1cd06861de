package main

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/dns"
	"wayleave.dev/dns/server"
	"wayleave.dev/internal/testnet"
)

// The commands reach a running dns container, and say what it says, or what was wrong
// with what was asked.
func TestAskingTheDNSContainer(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "health.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Run(ctx, server.Config{Socket: filepath.Join(dir, "none"), StateFile: filepath.Join(dir, "state"),
			HealthSocket: socket, Log: slog.New(slog.DiscardHandler)})
	}()
	t.Cleanup(func() { cancel(); <-done })
	testnet.Eventually(t, 10*time.Second, func() error {
		_, err := dns.Get(t.Context(), socket, "/livez")
		return err
	})
	for _, c := range []struct {
		command *cobra.Command
		args    string
		want    string
		fails   bool
	}{
		{dnsQueryCommand(socket), "--as pod/default/web google.com AAAA",
			"pod default/web is not known by address to this node's DNS", true},
		{dnsQueryCommand(socket), "--as default/web google.com", `--as is "default/web"; pod/NAMESPACE/NAME is allowed`,
			true},
		{dnsQueryCommand(socket), "google.com", `--as is ""`, true},
		{dnsQueryCommand(socket), "--as pod/default/web google.com nonsense", `type "nonsense" is none`, true},
		{dnsQueryCommand(filepath.Join(dir, "none")), "--as pod/default/web google.com", "no such file", true},
		{dnsLogCommand(socket), "--for 1s", "--pod NAMESPACE/NAME, --name NAME, or both", true},
		{dnsLogCommand(socket), "--pod web", `"web" is not a pod`, true},
		{dnsLogCommand(socket), "--name a.b --for 9h", "at most 1h", true},
		{dnsLogCommand(socket), "--pod default/web --for 20ms",
			"pod default/web is currently not known on this node\n# end: 0 queries", false},
	} {
		var out bytes.Buffer
		c.command.SetOut(&out)
		c.command.SetErr(&out)
		c.command.SetArgs(strings.Fields(c.args))
		c.command.SilenceUsage = true
		err := c.command.ExecuteContext(t.Context())
		if (err != nil) != c.fails || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s %s: %v, %s; want %s", c.command.Name(), c.args, err, out.String(), c.want)
		}
	}
}
