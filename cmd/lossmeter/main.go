// Command lossmeter keeps traffic going and counts what is lost, or echoes it.
//
//	lossmeter serve :7
//	lossmeter run 10s udp=10.96.3.4:7 tcp=10.96.3.4:7 dns=10.96.0.10:53/kubernetes.default.svc.cluster.local.
//
// run ends with its standard input, after the given time at the latest; it prints a line
// of JSON and exits with 1 when anything was lost.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"wayleave.dev/internal/lossmeter"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lossmeter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return lossmeter.Serve(ctx, args[1])
	case len(args) > 2 && args[0] == "run":
		ctx, cancel := context.WithCancel(ctx)
		go func() {
			defer cancel()
			_, _ = io.Copy(io.Discard, os.Stdin) // an error ends it, too
		}()
		return measure(ctx, args[1], args[2:])
	}
	return errors.New("usage: lossmeter serve ADDRESS | lossmeter run DURATION KIND=TARGET…")
}

func measure(ctx context.Context, duration string, args []string) error {
	d, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	var probes []lossmeter.Probe
	for _, a := range args {
		p, err := lossmeter.ParseProbe(a)
		if err != nil {
			return err
		}
		probes = append(probes, p)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	dial := func(network, addr string, timeout time.Duration) (net.Conn, error) {
		return net.DialTimeout(network, addr, timeout)
	}
	r, err := lossmeter.Run(ctx, dial, probes)
	if err != nil {
		return err
	}
	fmt.Println(r.JSON())
	if n := r.Lost(); n > 0 {
		return fmt.Errorf("%d of %d lost", n, r.Sent())
	}
	return nil
}
