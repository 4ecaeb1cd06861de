package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"wayleave.dev/lab/cluster"
	"wayleave.dev/lab/forward"
	"wayleave.dev/lab/nameserver"
	"wayleave.dev/lab/node"
	"wayleave.dev/lab/registry"
)

// internal are the lab's own programs. "lab up" starts them.
func internal() *cobra.Command {
	cmd := &cobra.Command{Use: "internal", Hidden: true}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cmd.AddCommand(
		&cobra.Command{
			Use: "machine SPEC", Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error { return node.Run(cmd.Context(), args[0], log) },
		},
		&cobra.Command{
			Use: "forward LISTEN NAMESPACE SERVER", Args: cobra.ExactArgs(3),
			RunE: func(cmd *cobra.Command, args []string) error {
				to, err := netip.ParseAddrPort(args[2])
				if err != nil {
					return fmt.Errorf("forward: SERVER: %w", err)
				}
				listener, err := net.Listen("tcp", args[0])
				if err != nil {
					return fmt.Errorf("forward: LISTEN: %w", err)
				}
				return forward.Serve(cmd.Context(), listener, args[1], to, log)
			},
		},
		services(log),
	)
	return cmd
}

// services are the servers at the gateway's addresses.
func services(log *slog.Logger) *cobra.Command {
	var archives, queries string
	cmd := &cobra.Command{
		Use: "services ADDRESS …", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := os.OpenFile(queries, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			defer file.Close()
			names, err := nameserver.New(file)
			if err != nil {
				return err
			}
			group, ctx := errgroup.WithContext(cmd.Context())
			for _, arg := range args {
				addr, err := netip.ParseAddr(arg)
				if err != nil {
					return fmt.Errorf("services: ADDRESS: %w", err)
				}
				if err := serveAt(ctx, group, addr, names, registry.New(archives)); err != nil {
					return err
				}
			}
			log.Info("serving", "addresses", args)
			return group.Wait()
		},
	}
	cmd.Flags().StringVar(&archives, "registry", "", "folder of the archives to serve")
	cmd.Flags().StringVar(&queries, "queries", "", "log of DNS queries")
	return cmd
}

func serveAt(ctx context.Context, group *errgroup.Group, addr netip.Addr, names *nameserver.Server,
	images http.Handler) error {
	servers, err := names.Listen(netip.AddrPortFrom(addr, 53))
	if err != nil {
		return err
	}
	for _, server := range servers {
		group.Go(server.ActivateAndServe)
		context.AfterFunc(ctx, func() { _ = server.Shutdown() })
	}
	listener, err := net.Listen("tcp", netip.AddrPortFrom(addr, cluster.RegistryPort).String())
	if err != nil {
		return errors.Join(err, shutdown(servers))
	}
	web := &http.Server{Handler: images, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = web.Close() })
	group.Go(func() error {
		if err := web.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

func shutdown(servers []*dns.Server) error {
	var errs []error
	for _, server := range servers {
		errs = append(errs, server.Shutdown())
	}
	return errors.Join(errs...)
}
