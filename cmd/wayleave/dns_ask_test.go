package main

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wayleave.dev/cmd/wayleave/commands"
	"wayleave.dev/deploy"
	"wayleave.dev/dns"
	"wayleave.dev/dns/server"
	"wayleave.dev/internal/cli"
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
	none := filepath.Join(dir, "none")
	for _, c := range []struct {
		socket, args, want string
		status             int
	}{
		{socket, "query --as pod/default/web google.com AAAA",
			"pod default/web is not known by address to this node's DNS", 1},
		{socket, "query --as default/web google.com", "pod default/web is not known by address to this node's DNS", 1},
		{socket, "query --as svc/default/web google.com",
			`--as: "svc/default/web" is a svc; pod/NAMESPACE/NAME is allowed`, 2},
		{socket, "query google.com", "--as: not given; the pod that asks is needed, as pod/NAMESPACE/NAME", 2},
		{socket, "query --as pod/default/web google.com nonsense", `"nonsense" is not a record type`, 1},
		{none, "query --as pod/default/web google.com", "no such file", 1},
		{socket, "log --for 1s", "--pod pod/NAMESPACE/NAME, --name NAME, or both", 2},
		{socket, "log --pod web", `"web" is no name of an object`, 2},
		{socket, "log --name a.b --for 9h", "at most 1h", 1},
		{socket, "log --pod default/web --for 20ms",
			"pod default/web is currently not known on this node\n# end: 0 queries", 0},
		{socket, "log --pod pod/default/web --for 20ms -o json", "{\"line\":\"# end: 0 queries", 0},
	} {
		var out bytes.Buffer
		command := commands.Root(deploy.Dev(), nil, c.socket)
		cli.Shape(command, "wayleave")
		command.SetOut(&out)
		command.SetArgs(append([]string{"dns"}, strings.Fields(c.args)...))
		status := cli.Report(command.ExecuteContext(t.Context()), "wayleave", &out)
		if status != c.status || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: status %d, %s; want %d, %s", c.args, status, out.String(), c.status, c.want)
		}
	}
}
