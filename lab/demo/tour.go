// Package demo is the guided tour of `make demo`: examples on a real cluster, each line of which is a check that can
// fail.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"wayleave.dev/internal/await"
)

// Tour runs the checks against one lab.
type Tour struct {
	// Lab is the lab's command line tool, Kubectl that of the cluster.
	Lab, Kubectl string
	// Kubeconfig is the file for Kubectl.
	Kubeconfig string
	// Version is the tag of agnhost, as in registry.k8s.io/e2e-test-images/agnhost:VERSION.
	Agnhost string
	// Server is where this machine reaches the API server.
	Server string
	Out    io.Writer

	failed []error
	shown  bytes.Buffer // output of the current check
}

// check is one line of the tour.
type check struct {
	// name is how docs/features refers to it.
	name string
	// say is the printed description.
	say string
	run func(ctx context.Context, t *Tour) error
	// within is the deadline.
	within time.Duration
	// apart means that it runs only if requested by name: it needs a lab of its own, or does not pass yet.
	apart bool
	// long means that it is left out of the short tour: a rollout, or a crash that takes time.
	long bool
}

// Selection selects checks.
type Selection struct {
	// Only selects the checks of these names, if not empty.
	Only []string
	// Long also selects the long checks.
	Long bool
}

func (s Selection) has(c check) bool {
	if len(s.Only) > 0 {
		return slices.Contains(s.Only, c.name)
	}
	return !c.apart && (s.Long || !c.long)
}

// chapter is a group of checks under a heading.
type chapter struct {
	title  string
	checks []check
}

// Run runs the selected checks. It continues after a failed check, and returns an error that names all failed ones.
func (t *Tour) Run(ctx context.Context, which Selection) error {
	start, ran, left := time.Now(), 0, 0
	for _, c := range chapters() {
		titled := false
		for _, k := range c.checks {
			if !which.has(k) {
				if k.long {
					left++
				}
				continue
			}
			if !titled {
				fmt.Fprintf(t.Out, "\n\033[1m%s\033[0m\n", c.title)
				titled = true
			}
			ran++
			t.play(ctx, k)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	if ran == 0 {
		return fmt.Errorf("no check is named %s", strings.Join(which.Only, ", "))
	}
	fmt.Fprintf(t.Out, "\n%d checks in %s, %d failed\n", ran, time.Since(start).Round(time.Second), len(t.failed))
	if len(which.Only) == 0 && left > 0 {
		fmt.Fprintf(t.Out, "%d long checks were left out; TOUR=all runs them, too\n", left)
	}
	return errors.Join(t.failed...)
}

func (t *Tour) play(ctx context.Context, k check) {
	within := k.within
	if within == 0 {
		within = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	t.shown.Reset()
	start := time.Now()
	err := k.run(ctx, t)
	took := time.Since(start).Round(100 * time.Millisecond)
	if err == nil {
		fmt.Fprintf(t.Out, "  \033[32mok\033[0m    %s (%s, %s)\n", k.say, k.name, took)
		return
	}
	// Repeated at the end, where people look first.
	t.failed = append(t.failed, fmt.Errorf("failed: %s, after %s: %s", k.name, took, head(err.Error(), 500)))
	fmt.Fprintf(t.Out, "  \033[31mFAIL\033[0m  %s (%s, %s)\n        %v\n", k.say, k.name, took, err)
	for line := range strings.Lines(t.shown.String()) {
		fmt.Fprintf(t.Out, "        | %s", line)
	}
}

// head truncates a text to n bytes.
func head(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + " …"
	}
	return s
}

// command runs a program and returns its standard output, trimmed.
func (t *Tour) command(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+t.Kubeconfig)
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	text := strings.TrimSpace(out.String())
	if t.shown.Len() < 20_000 {
		fmt.Fprintf(&t.shown, "$ %s\n%s\n", strings.Join(args, " "), strings.TrimSpace(text+"\n"+errs.String()))
	}
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return text, nil
}

func (t *Tour) kubectl(ctx context.Context, args ...string) (string, error) {
	return t.command(ctx, nil, t.Kubectl, args...)
}

func (t *Tour) apply(ctx context.Context, yaml string) error {
	_, err := t.command(ctx, strings.NewReader(yaml), t.Kubectl, "apply", "-f", "-")
	return err
}

// in runs a program in a pod of the namespace default.
func (t *Tour) in(ctx context.Context, pod string, args ...string) (string, error) {
	return t.kubectl(ctx, append([]string{"exec", pod, "--"}, args...)...)
}

// at runs a program in a node's namespaces, or with "outside" in the external client's.
func (t *Tour) at(ctx context.Context, place string, args ...string) (string, error) {
	return t.command(ctx, nil, t.Lab, append([]string{"exec", place, "--"}, args...)...)
}

// eventually repeats fn until it succeeds or the check's deadline passes.
func eventually(ctx context.Context, fn func() error) error {
	return await.Success(ctx, 300*time.Millisecond, fn)
}

// fields queries kubectl for a jsonpath and splits the result.
func (t *Tour) fields(ctx context.Context, path string, args ...string) ([]string, error) {
	out, err := t.kubectl(ctx, append(append([]string{"get"}, args...), "-o", "jsonpath="+path)...)
	return strings.Fields(out), err
}

func (t *Tour) one(ctx context.Context, path string, args ...string) (string, error) {
	l, err := t.fields(ctx, path, args...)
	if err == nil && len(l) != 1 {
		err = fmt.Errorf("%s: %d values: %v", strings.Join(args, " "), len(l), l)
	}
	if err != nil {
		return "", err
	}
	return l[0], nil
}

// clients returns the client pods by node.
func (t *Tour) clients(ctx context.Context) ([]string, error) {
	l, err := t.fields(ctx, "{.items[*].metadata.name}", "pods", "-l", "app=client")
	if err == nil && len(l) == 0 {
		err = errors.New("there is no client pod")
	}
	slices.Sort(l)
	return l, err
}

// fromEveryNode calls fn for the client pod of each node.
func fromEveryNode(fn func(ctx context.Context, t *Tour, pod string) error) func(context.Context, *Tour) error {
	return func(ctx context.Context, t *Tour) error {
		pods, err := t.clients(ctx)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if err := fn(ctx, t, p); err != nil {
				return fmt.Errorf("from %s: %w", p, err)
			}
		}
		return nil
	}
}

func want(text string, parts ...string) error {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return fmt.Errorf("%q is missing in: %s", p, text)
		}
	}
	return nil
}
