package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/migrate"
)

func importCommand() *cobra.Command {
	c := &cobra.Command{Use: "import", Short: "Turn what another program was told into our objects and settings",
		Args: cobra.NoArgs}
	c.AddCommand(importMetalLBCommand(), importKubeProxyCommand())
	return c
}

func importMetalLBCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "metallb -f FILE|-",
		Short: "MetalLB's IPAddressPools and L2Advertisements as AddressPools, on stdout",
		Long: "Reads what `kubectl -n metallb-system get " +
			"ipaddresspools,l2advertisements,bgppeers,bgpadvertisements,communities,bfdprofiles -o yaml`\n" +
			"prints, or the ConfigMap of MetalLB before 0.13, and prints AddressPools. What becomes of fields that " +
			"an AddressPool has not is said on\n" +
			"stderr, a line each. It fails when something could not be carried over; the AddressPools are printed " +
			"all the same. The addresses that\n" +
			"Services have stay: they are in their status.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withFile(cmd, file, func(in io.Reader) error {
				return migrate.MetalLB(file, in, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "the file; - is stdin")
	require(c, "filename")
	return c
}

func importKubeProxyCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "kube-proxy [-f FILE|-] [-- FLAGS]",
		Short: "kube-proxy's settings and flags as settings, on stdout",
		Long: "Reads a KubeProxyConfiguration, as `kubectl -n kube-system get configmap kube-proxy -o " +
			"jsonpath='{.data.config\\.conf}'` prints it, and the\n" +
			"flags of kube-proxy after --, and prints settings for the ConfigMap wayleave. What becomes of each " +
			"field and flag that is not a setting\n" +
			"is said on stderr. It fails when one could not be carried over; the settings are printed all the same.",
		RunE: func(cmd *cobra.Command, flags []string) error {
			if file == "" && len(flags) == 0 {
				return fmt.Errorf("give a file by -f, or flags after --")
			}
			return withFile(cmd, file, func(in io.Reader) error {
				return migrate.KubeProxy(in, flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "the file; - is stdin")
	return c
}

// withFile opens a file; "-" is stdin, and empty a nil reader.
func withFile(cmd *cobra.Command, file string, run func(io.Reader) error) error {
	switch file {
	case "":
		return run(nil)
	case "-":
		return run(cmd.InOrStdin())
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return run(f)
}

// importCorefileCommand is one of the command dns.
func importCorefileCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import-corefile FILE|-",
		Short: "CoreDNS's Corefile as settings, on stdout",
		Long: "Reads a Corefile, as `kubectl -n kube-system get configmap coredns -o jsonpath='{.data.Corefile}'` " +
			"prints it, and prints settings for the\n" +
			"ConfigMap wayleave. What becomes of every line that is not a setting is said on stderr. It fails when " +
			"a line could not be carried over;\n" +
			"the settings are printed all the same.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if name == "-" {
				name = ""
			}
			return withFile(cmd, args[0], func(in io.Reader) error {
				return migrate.Corefile(in, name, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
}
