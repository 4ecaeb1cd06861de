// Command wayleave is the one program of Wayleave: what it does follows from its
// first argument. This package is wiring only.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wayleave.dev/deploy"
)

// The linker sets these in a release (hack/release).
var (
	version = deploy.DevVersion
	image   = deploy.Image
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		status := exitStatus{1, err}
		errors.As(err, &status)
		if status.cause != nil {
			fmt.Fprintln(os.Stderr, "wayleave:", status.cause)
		}
		os.Exit(status.code)
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:           "wayleave",
		Short:         "Services and networking of Kubernetes in one program",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	c.AddCommand(importCommand())
	c.AddCommand(nodeCommands()...)
	return c
}

// exitStatus is an error that says which status the program ends with. Without a cause
// nothing is printed.
type exitStatus struct {
	code  int
	cause error
}

// Error implements error.
func (e exitStatus) Error() string {
	if e.cause == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.cause.Error()
}

// Unwrap gives the cause.
func (e exitStatus) Unwrap() error { return e.cause }

// require has a flag that must be given.
func require(c *cobra.Command, flag string) {
	if err := c.MarkFlagRequired(flag); err != nil {
		panic(err) // the flag is not defined: every run of the program fails
	}
}
