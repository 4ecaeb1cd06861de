package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/dns"
	"wayleave.dev/internal/owner"
	"wayleave.dev/kernel/link"
	"wayleave.dev/kernel/nft"
	"wayleave.dev/podnetwork"
	"wayleave.dev/podnetwork/cni"
	"wayleave.dev/service/nftables"
)

func uninstallCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take every rule, route, link, address, sysctl and file of ours off this node",
		Long: "Run it on the node as root, after the DaemonSet is deleted:\n" +
			"the program is in the image, and copied out by `ctr run` or `docker cp`.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			if err := uninstall(ctx); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "nothing of Wayleave is left on this node")
			return nil
		},
	}
	return c
}

func uninstall(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	lock, err := owner.Acquire(wait, runDir+"/owner.lock", nil)
	if err != nil {
		return fmt.Errorf("an agent still owns this node; delete the DaemonSet first: %w", err)
	}
	defer lock.Release()
	conn, err := nft.NewKernel(0)
	if err != nil {
		return err
	}
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	addrs, err := link.NewKernel(int(ns.Fd()), stateDir+"/dns-addresses")
	if err != nil {
		return err
	}
	return errors.Join(
		podnetwork.Uninstall(ctx, podnetwork.Config{NSFD: int(ns.Fd()), StateDir: stateDir, Socket: cni.Socket, Tombstones: cni.Tombstones,
			Sysctl: "/proc/sys/net", BinDir: cniBinDir, ConfDir: cniConfDir, Kernel: addrs, NFT: conn}),
		dns.Uninstall(ctx, addrs, conn),
		nftables.New(conn, nil).Remove(ctx),
		os.RemoveAll(stateDir), os.RemoveAll(runDir),
	)
}
