package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// plugin is the name of the program as a plugin of kubectl.
const plugin = "kubectl-wayleave"

// Group is a command that only has other commands. Alone it prints its help.
func Group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(commands...)
	return c
}

// Internal hides commands that only Wayleave itself runs.
func Internal(commands ...*cobra.Command) []*cobra.Command {
	for _, c := range commands {
		c.Hidden = true
	}
	return commands
}

// Shape gives all commands below root the same manners: a wrong command line ends with status 2, groups refuse
// commands that do not exist, help shows the name by which the program was called, and a terminal obeys nothing of
// what is printed.
func Shape(root *cobra.Command, calledAs string) {
	if strings.TrimSuffix(filepath.Base(calledAs), ".exe") == plugin {
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl wayleave"}
	}
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return NoAnswer(flagError(c, err)) })
	root.SetHelpCommand(helpCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	shape(root)
}

func shape(c *cobra.Command) {
	if !c.Runnable() {
		c.Args, c.RunE = noSuchCommand, func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, list []string) error {
			out, errs := visibly(c.OutOrStdout()), visibly(c.ErrOrStderr())
			defer out.end()
			defer errs.end()
			c.SetOut(out)
			c.SetErr(errs)
			return run(c, list)
		}
	}
	args := c.Args
	c.Args = func(c *cobra.Command, list []string) error {
		if args != nil {
			if err := args(c, list); err != nil {
				return NoAnswer(argsError(c, list, err))
			}
		}
		if err := requiredFlags(c); err != nil {
			return NoAnswer(err)
		}
		return NoAnswer(flagGroups(c))
	}
	for _, sub := range c.Commands() {
		shape(sub)
	}
}

// noSuchCommand refuses arguments of a group, and suggests what was meant.
func noSuchCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	c.SuggestionsMinimumDistance = 2
	hint := fmt.Sprintf("`%s --help` lists the commands", c.CommandPath())
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "did you mean " + strings.Join(like, " or ") + "?"
	}
	return Status{Unknown, fmt.Errorf("unknown command %q for %q; %s", args[0], c.CommandPath(), hint)}
}

// helpCommand is cobra's, but for a command that does not exist it fails.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Explain a command",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil {
				return NoAnswer(err)
			}
			if len(rest) > 0 {
				return noSuchCommand(about, rest)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}
