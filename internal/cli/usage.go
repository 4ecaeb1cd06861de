package cli

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagError names the flag, what was found, and what is allowed or where that is explained.
func flagError(c *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return fmt.Errorf("--%s: found %q; %s", invalid.GetFlag().Name, invalid.GetValue(), allowed(invalid))
	}
	return fmt.Errorf("%w; `%s --help` lists the flags", err, c.CommandPath())
}

// allowed says which values a flag takes.
func allowed(invalid *pflag.InvalidValueError) string {
	switch invalid.GetFlag().Value.Type() {
	case "int":
		return "a number is allowed"
	case "duration":
		return "a duration is allowed, such as 30s or 5m"
	case "bool":
		return "true and false are allowed"
	}
	return errors.Unwrap(invalid).Error()
}

// argsError completes what cobra says of arguments.
func argsError(c *cobra.Command, list []string, err error) error {
	switch text := err.Error(); {
	case len(c.ValidArgs) > 0:
		return fmt.Errorf("found %q; one of %s is allowed", strings.Join(list, " "), strings.Join(c.ValidArgs, ", "))
	case !c.HasSubCommands() && strings.HasPrefix(text, "unknown command"): // from cobra.NoArgs
		return fmt.Errorf("%s: found %q; no argument is allowed: `%s --help` lists the flags", c.CommandPath(),
			strings.Join(list, " "), c.CommandPath())
	case hasAdvice(err):
		return err
	}
	return fmt.Errorf("%w; usage: %s", err, c.UseLine())
}

// advised is an error of a command line that says itself what is allowed.
type advised struct{ error }

// Advice makes an error that says what is allowed, to which nothing is added.
func Advice(text string) error { return advised{errors.New(text)} }

// hasAdvice reports whether an error is one of Advice, or the help of a group.
func hasAdvice(err error) bool {
	var a advised
	var s Status
	return errors.As(err, &a) || errors.As(err, &s)
}

// requiredFlags refuses a command line without a flag that is needed.
func requiredFlags(c *cobra.Command) error {
	if c.DisableFlagParsing {
		return nil
	}
	var missing []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if slices.Equal(f.Annotations[cobra.BashCompOneRequiredFlag], []string{"true"}) && !f.Changed {
			missing = append(missing, "--"+f.Name+": not given; "+f.Usage)
		}
	})
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s; usage: %s", strings.Join(missing, "; "), c.UseLine())
}

// exclusive is cobra's error for flags of which only one is allowed.
var exclusive = regexp.MustCompile(`^if any flags in the group \[.*\] are set none of the others can be; \[(.*)\]`)

// flagGroups refuses flags that exclude each other.
func flagGroups(c *cobra.Command) error {
	err := c.ValidateFlagGroups()
	if err == nil {
		return nil
	}
	if found := exclusive.FindStringSubmatch(err.Error()); found != nil {
		return fmt.Errorf("--%s: only one of them is allowed",
			strings.Join(strings.Fields(found[1]), " and --"))
	}
	return err
}
