// Package cli is the shape that all commands have in common: formats of output, the choice of a cluster, exit
// statuses, and errors.
//
// Invariants:
//   - A command that prints results takes -o text|json|yaml.
//   - A command that talks to a cluster takes --kubeconfig, --context and -n.
//   - A wrong command line ends with status 2, and one line on stderr.
package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// The exit statuses of commands that answer a question, as those of grep.
const (
	// No is the answer "no": denied, failed, something is wrong.
	No = 1
	// Unknown says that there is no answer, as for a wrong command line.
	Unknown = 2
)

// Status is an error that says which status the program ends with. Without a cause nothing is printed.
type Status struct {
	Code  int
	Cause error
}

// Error implements error.
func (s Status) Error() string {
	if s.Cause == nil {
		return fmt.Sprintf("exit status %d", s.Code)
	}
	return s.Cause.Error()
}

// Unwrap returns the cause.
func (s Status) Unwrap() error { return s.Cause }

// NoAnswer is the status Unknown with its cause, or nil.
func NoAnswer(err error) error {
	var s Status
	if err == nil || errors.As(err, &s) {
		return err
	}
	return Status{Unknown, err}
}

// Verdict is the status of a yes-or-no answer that has been printed.
func Verdict(yes bool) error {
	if yes {
		return nil
	}
	return Status{Code: No}
}

// Report prints the error of a command as one line, and returns the exit status.
func Report(err error, program string, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	status := Status{1, err}
	errors.As(err, &status)
	if status.Cause != nil {
		lines := strings.FieldsFunc(status.Cause.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
		fmt.Fprintf(visibly(stderr), "%s: %s\n", program, strings.Join(lines, "; "))
	}
	return status.Code
}
