package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wayleave.dev/source/manifest"
)

func importCommand() *cobra.Command {
	c := &cobra.Command{Use: "import", Short: "Turn what another program was told into our objects", Args: cobra.NoArgs}
	var file string
	metallb := &cobra.Command{
		Use:   "metallb -f FILE|-",
		Short: "MetalLB's IPAddressPools and L2Advertisements as AddressPools, on stdout",
		Long: "Reads what `kubectl -n metallb-system get ipaddresspools,l2advertisements,bgppeers,bgpadvertisements -o yaml` prints, and prints AddressPools.\n" +
			"What cannot be carried over is said on stderr, a line each. The addresses that Services have stay: they are in their status.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in := cmd.InOrStdin()
			if file != "-" {
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			return importMetalLB(file, in, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	metallb.Flags().StringVarP(&file, "filename", "f", "", "the file; - is stdin")
	if err := metallb.MarkFlagRequired("filename"); err != nil {
		panic(err) // the flag is defined above
	}
	c.AddCommand(metallb)
	return c
}

func importMetalLB(file string, in io.Reader, out, notes io.Writer) error {
	pools, said, err := manifest.MetalLB(file, in)
	for _, n := range said {
		fmt.Fprintln(notes, "note:", n)
	}
	if err != nil {
		return err
	}
	_, err = out.Write(pools)
	return err
}
