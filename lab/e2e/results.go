// Package e2e reads the report of a run of Kubernetes' end-to-end tests.
package e2e

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// Spec is one test that ran.
type Spec struct {
	Name    string
	Failed  bool
	Seconds float64
	Message string // why it failed, its first line
}

// Results are the tests that ran.
type Results []Spec

// labels are the words that ginkgo repeats at the end of a name.
var labels = regexp.MustCompile(` \[[^\]]*\]$`)

type junit struct {
	Suites []struct {
		Cases []struct {
			Name    string  `xml:"name,attr"`
			Status  string  `xml:"status,attr"`
			Time    float64 `xml:"time,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
			} `xml:"failure"`
			Error *struct {
				Message string `xml:"message,attr"`
			} `xml:"error"`
			Skipped *struct{} `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// Read parses a JUnit report of ginkgo. Skipped tests are left out; the suite's own set-up is included if it failed.
func Read(r io.Reader) (Results, error) {
	var report junit
	if err := xml.NewDecoder(r).Decode(&report); err != nil {
		return nil, fmt.Errorf("e2e: JUnit report: %w", err)
	}
	var all Results
	for _, suite := range report.Suites {
		for _, c := range suite.Cases {
			spec := Spec{Name: labels.ReplaceAllString(strings.TrimPrefix(c.Name, "[It] "), ""), Seconds: c.Time}
			switch {
			case c.Skipped != nil:
				continue
			case c.Failure != nil:
				spec.Failed, spec.Message = true, c.Failure.Message
			case c.Error != nil:
				spec.Failed, spec.Message = true, c.Error.Message
			}
			if !strings.HasPrefix(c.Name, "[It] ") && !spec.Failed {
				continue
			}
			spec.Message, _, _ = strings.Cut(strings.TrimSpace(spec.Message), "\n")
			all = append(all, spec)
		}
	}
	return all, nil
}

// Failed counts the tests that failed.
func (r Results) Failed() int {
	n := 0
	for _, spec := range r {
		if spec.Failed {
			n++
		}
	}
	return n
}

// Err returns nil if at least one test ran and none failed.
func (r Results) Err() error {
	if len(r) == 0 {
		return errors.New("e2e: the filter matches no test")
	}
	if n := r.Failed(); n > 0 {
		return fmt.Errorf("e2e: %d of %d tests failed", n, len(r))
	}
	return nil
}

// Print writes a line for each test, the failed ones last, and a summary.
func (r Results) Print(w io.Writer) {
	for _, failed := range []bool{false, true} {
		for _, spec := range r {
			if spec.Failed != failed {
				continue
			}
			verdict := "pass"
			if failed {
				verdict = "FAIL"
			}
			fmt.Fprintf(w, "%s %6.1fs %s\n", verdict, spec.Seconds, spec.Name)
			if failed {
				fmt.Fprintf(w, "              %s\n", spec.Message)
			}
		}
	}
	fmt.Fprintf(w, "%d passed, %d failed\n", len(r)-r.Failed(), r.Failed())
}

// Progress forwards only the lines that show progress: ginkgo's verdicts.
func Progress(w io.Writer) io.Writer { return &verdicts{to: w} }

type verdicts struct {
	to   io.Writer
	line []byte
}

func (v *verdicts) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != '\n' {
			v.line = append(v.line, b)
			continue
		}
		line := string(v.line)
		v.line = v.line[:0]
		if strings.HasPrefix(line, "Will run ") || strings.HasPrefix(line, "Ran ") ||
			strings.Contains(line, "[FAILED] in [It]") {
			if _, err := fmt.Fprintln(v.to, line); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}
