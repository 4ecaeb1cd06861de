package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/config"
	"wayleave.dev/source/manifest"
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
				return importMetalLB(file, in, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
	c.Flags().StringVarP(&file, "filename", "f", "", "the file; - is stdin")
	if err := c.MarkFlagRequired("filename"); err != nil {
		panic(err) // the flag is defined above
	}
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
				return importKubeProxy(in, flags, cmd.OutOrStdout(), cmd.ErrOrStderr())
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

func importMetalLB(file string, in io.Reader, out, notes io.Writer) error {
	pools, said, err := manifest.MetalLB(file, in)
	lost := 0
	for _, n := range said {
		if n.Lost {
			lost++
		}
		say(notes, n.String(), n.Lost)
	}
	if err != nil {
		return err
	}
	if _, err := out.Write(pools); err != nil {
		return err
	}
	return failure(lost)
}

func importKubeProxy(in io.Reader, flags []string, out, notes io.Writer) error {
	var raw []byte
	if in != nil {
		var err error
		if raw, err = io.ReadAll(io.LimitReader(in, 1<<20)); err != nil {
			return err
		}
		if len(raw) == 0 {
			return fmt.Errorf("the file is empty")
		}
	}
	got, err := config.ImportKubeProxy(raw, flags)
	if err != nil {
		return err
	}
	for _, n := range got.Notes {
		say(notes, n, false)
	}
	for _, n := range got.Lost {
		say(notes, n, true)
	}
	if _, err := out.Write(got.Settings); err != nil {
		return err
	}
	return failure(len(got.Lost))
}

// say writes a line about what is imported.
func say(to io.Writer, text string, lost bool) {
	what := "note"
	if lost {
		what = "not carried over"
	}
	fmt.Fprintln(to, what+":", text)
}

// failure is the error of an import that lost something.
func failure(lost int) error {
	if lost == 0 {
		return nil
	}
	return fmt.Errorf("%d things could not be carried over, see above", lost)
}
