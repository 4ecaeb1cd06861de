package podnetwork

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"wayleave.dev/kernel/sysctl"
	"wayleave.dev/podnetwork/cni/call"
	"wayleave.dev/podnetwork/routes"
	"wayleave.dev/podnetwork/veth"
	"wayleave.dev/podnetwork/wireguard"
)

// files are those of the feature on the node.
func files(c Config) []string {
	return []string{filepath.Join(c.ConfDir, ConfName), filepath.Join(c.BinDir, call.Type), c.Socket,
		filepath.Join(c.StateDir, "leases"), filepath.Join(c.StateDir, "leases.new"),
		filepath.Join(c.StateDir, "leases.damaged"), sysctls(c).State,
		proxyFile(c), proxyFile(c) + ".new"}
}

func sysctls(c Config) sysctl.Set {
	return sysctl.Set{Root: c.Sysctl, State: filepath.Join(c.StateDir, "sysctl"), Tell: c.Tell}
}

// Uninstall removes what the feature left on the node: links, routes, rules, files,
// and puts sysctls back. Pods lose their network.
func Uninstall(ctx context.Context, c Config) error {
	host, err := veth.NewHost(c.NSFD, c.Sysctl)
	if err != nil {
		return err
	}
	names, err := host.Names()
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, host.Teardown(name))
	}
	list, err := c.Kernel.Routes(ctx)
	errs = append(errs, err)
	for _, r := range list {
		errs = append(errs, c.Kernel.DelRoute(ctx, r))
	}
	proxy, err := proxyLinks(c)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, proxy.SetLocal(ctx, nil))
	errs = append(errs, c.Kernel.SetRules(ctx, nil), c.Kernel.DelTunnel(ctx, routes.Device))
	errs = append(errs, c.Rules(RulesConfig{}).Remove(ctx), uninstallEncryption(ctx, c))
	if c.FastPath.Conn != nil {
		errs = append(errs, c.FastPath.Conn.Remove(ctx))
	}
	if c.Firewall != nil {
		_, err := c.Firewall.Withdraw(ctx, firewallOwner)
		errs = append(errs, err)
	}
	errs = append(errs, sysctls(c).Restore())
	for _, file := range files(c) {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(c.Tombstones))...)
}

// uninstallEncryption removes devices and rules. A process in user space ends with its device.
func uninstallEncryption(ctx context.Context, c Config) error {
	if c.Encryption.Devices == nil {
		return nil
	}
	errs := []error{wireguard.NewGuard(c.NFT, [wireguard.Devices]uint16{}).Remove(ctx)}
	for i := range wireguard.Devices {
		errs = append(errs, c.Encryption.Devices.Remove(ctx, wireguard.Device(i)))
	}
	return errors.Join(errs...)
}

func encryptionLeft(ctx context.Context, c Config) ([]string, error) {
	if c.Encryption.Devices == nil {
		return nil, nil
	}
	left, err := wireguard.NewGuard(c.NFT, [wireguard.Devices]uint16{}).Remains(ctx)
	errs := []error{err}
	for i := range wireguard.Devices {
		name := wireguard.Device(i)
		there, err := c.Kernel.HasLink(name)
		errs = append(errs, err)
		if there {
			left = append(left, "link "+name)
		}
	}
	return left, errors.Join(errs...)
}

// Remains names what of the feature is on the node.
func Remains(ctx context.Context, c Config) ([]string, error) {
	host, err := veth.NewHost(c.NSFD, c.Sysctl)
	if err != nil {
		return nil, err
	}
	var left []string
	names, err := host.Names()
	errs := []error{err}
	for _, name := range names {
		left = append(left, "link "+name)
	}
	list, err := c.Kernel.Routes(ctx)
	errs = append(errs, err)
	for _, r := range list {
		left = append(left, fmt.Sprintf("route to %s", r.Dst))
	}
	proxy, err := proxyLinks(c)
	if err != nil {
		return nil, err
	}
	addrs, err := proxy.Local(ctx)
	errs = append(errs, err)
	for _, a := range addrs {
		left = append(left, fmt.Sprintf("address %s of the ingress proxy", a))
	}
	rules, err := c.Kernel.Rules(ctx)
	errs = append(errs, err)
	for _, p := range rules {
		left = append(left, fmt.Sprintf("routing rule for %s", p))
	}
	if there, err := c.Kernel.HasTunnel(ctx, routes.Device); there || err != nil {
		left = append(left, "link "+routes.Device)
		errs = append(errs, err)
	}
	tables, err := c.Rules(RulesConfig{}).Remains(ctx)
	errs = append(errs, err)
	left = append(left, tables...)
	encryption, err := encryptionLeft(ctx, c)
	errs = append(errs, err)
	left = append(left, encryption...)
	if c.FastPath.Conn != nil {
		programs, err := c.FastPath.Conn.Remains(ctx)
		errs = append(errs, err)
		left = append(left, programs...)
	}
	if c.Firewall != nil {
		chains, err := c.Firewall.Accepting(ctx, firewallOwner)
		errs = append(errs, err)
		for _, name := range chains {
			left = append(left, "rules in "+name)
		}
	}
	for _, file := range append(files(c), c.Tombstones) {
		if _, err := os.Lstat(file); err == nil {
			left = append(left, "file "+file)
		} else if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return left, errors.Join(errs...)
}
