package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/config"
	"wayleave.dev/dns/corefile"
)

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
			in, name := cmd.InOrStdin(), ""
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in, name = f, args[0]
			}
			return importCorefile(in, name, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

// importCorefile says of every line what becomes of it, with the file's name where it has one.
func importCorefile(in io.Reader, name string, out, notes io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return err
	}
	settings, said, err := corefile.Translate(string(raw), config.Has)
	if err != nil {
		return err
	}
	lost := 0
	for _, n := range said {
		fmt.Fprintln(notes, n.In(name))
		if n.Lost {
			lost++
		}
	}
	if _, err := config.Parse(settings); err != nil {
		return fmt.Errorf("the Corefile has values that are none:\n%w", err)
	}
	if _, err := out.Write(settings); err != nil {
		return err
	}
	if lost > 0 {
		return fmt.Errorf("%d things could not be carried over, see above", lost)
	}
	return nil
}
