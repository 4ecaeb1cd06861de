package commands

import (
	"bytes"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"wayleave.dev/internal/cli"
	"wayleave.dev/migrate"
)

func importCommand() *cobra.Command {
	return cli.Group("import", "Convert other programs' configuration into Wayleave's objects and settings",
		importMetalLBCommand(), importCalicoCommand(), importKubeProxyCommand(),
		importCorefileCommand("corefile [-f FILE|-]"))
}

// translation reads in, writes YAML to out and remarks to notes. The error says what was lost.
type translation func(in io.Reader, out, notes io.Writer) error

// translate prints the YAML even if something was lost.
func translate(cmd *cobra.Command, out *cli.Output, file string, run translation) error {
	return withFile(cmd, file, func(in io.Reader) error {
		var b bytes.Buffer
		lost := run(in, &b, cmd.ErrOrStderr())
		if b.Len() == 0 && lost != nil {
			return lost
		}
		return errors.Join(out.PrintYAML(cmd.OutOrStdout(), b.Bytes()), lost)
	})
}

// importObjects translates a file by a function of package migrate.
func importObjects(use, short, long string, run func(file string, in io.Reader, out, notes io.Writer) error,
) *cobra.Command {
	var file string
	var out cli.Output
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs,
		Long: long + "Fails if something could not be carried over; the objects are printed anyway.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return translate(cmd, &out, file, func(in io.Reader, o, notes io.Writer) error {
				return run(file, in, o, notes)
			})
		}}
	c.Flags().StringVarP(&file, "filename", "f", "", "the file, - for stdin")
	require(c, "filename")
	out.Flag(c)
	return c
}

func importMetalLBCommand() *cobra.Command {
	return importObjects("metallb -f FILE|-", "Convert MetalLB's pools, advertisements and BGP peers",
		"Reads what `kubectl -n metallb-system get "+
			"ipaddresspools,l2advertisements,bgppeers,bgpadvertisements,communities,bfdprofiles -o yaml`\n"+
			"prints, or the ConfigMap of MetalLB before 0.13. Prints AddressPools and objects of BGP on stdout,\n"+
			"and on stderr a line for each field without an equivalent. Services keep their\n"+
			"addresses, which are in their status. ", migrate.MetalLB)
}

func importCalicoCommand() *cobra.Command {
	return importObjects("calico -f FILE|-", "Convert Calico's BGP peers, BGP configuration and pools",
		"Reads BGPPeers, BGPConfigurations and IPPools, as kubectl (crd.projectcalico.org) or calicoctl with\n"+
			"-o yaml print them. Prints objects of BGP and AddressPools on stdout, and on stderr the settings\n"+
			"to make and a line for each field without an equivalent. ", migrate.Calico)
}

func importKubeProxyCommand() *cobra.Command {
	var file string
	var out cli.Output
	c := &cobra.Command{
		Use:   "kube-proxy [-f FILE|-] [-- FLAGS]",
		Short: "Convert kube-proxy's configuration and flags into settings",
		Long: "Reads a KubeProxyConfiguration, as `kubectl -n kube-system get configmap kube-proxy -o " +
			"jsonpath='{.data.config\\.conf}'` prints it, and the\n" +
			"flags of kube-proxy after --. Prints settings for the ConfigMap wayleave-settings on stdout, and on " +
			"stderr a line for each field and flag\n" +
			"without an equivalent. Fails if one could not be carried over; the settings are printed anyway.",
		Args: func(cmd *cobra.Command, flags []string) error {
			if file == "" && len(flags) == 0 {
				return cli.Advice("give a file by -f (- is stdin), or flags of kube-proxy after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, flags []string) error {
			return translate(cmd, &out, file, func(in io.Reader, o, notes io.Writer) error {
				return migrate.KubeProxy(in, flags, o, notes)
			})
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "the file, - for stdin")
	out.Flag(c)
	return c
}

// importCorefileCommand takes the file as an argument, too, as `dns import-corefile` of earlier versions did.
func importCorefileCommand(use string) *cobra.Command {
	var file string
	var out cli.Output
	c := &cobra.Command{
		Use:   use,
		Short: "Convert CoreDNS's Corefile into settings",
		Long: "Reads a Corefile, as `kubectl -n kube-system get configmap coredns -o jsonpath='{.data.Corefile}'` " +
			"prints it, and prints settings for the\n" +
			"ConfigMap wayleave-settings on stdout. On stderr is a line for each directive without an equivalent. " +
			"Fails if one could not be carried\n" +
			"over; the settings are printed anyway.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || (len(args) == 1) == (file != "") {
				return cli.Advice("give one file by -f; - is stdin")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				file = args[0]
			}
			name := file
			if name == "-" {
				name = ""
			}
			return translate(cmd, &out, file, func(in io.Reader, o, notes io.Writer) error {
				return migrate.Corefile(in, name, o, notes)
			})
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "the file, - for stdin")
	out.Flag(c)
	return c
}
