// Command wayleave is the one program of Wayleave: what it does follows from its
// first argument. This package is wiring only.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wayleave.dev/deploy"
	"wayleave.dev/internal/cli"
)

// The linker sets these in a release (hack/release).
var (
	version = deploy.DevVersion
	image   = deploy.Image
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(cli.Report(root().ExecuteContext(ctx), "wayleave", os.Stderr))
}

func root() *cobra.Command {
	c := program()
	cli.Shape(c, os.Args[0])
	return c
}

func release() deploy.Release { return deploy.Release{Version: version, Image: image} }
