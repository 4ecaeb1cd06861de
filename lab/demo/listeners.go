package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wayleave.dev/internal/listeners"
)

// listenersKnown compares the listening sockets of each node's containers with the table. The lab program is in the
// folder dist of the checkout.
func listenersKnown(ctx context.Context, t *Tour) error {
	page, err := os.ReadFile(filepath.Join(filepath.Dir(t.Lab), "..", "docs", "security.md"))
	if err != nil {
		return err
	}
	rows, err := listeners.Parse(string(page))
	if err != nil {
		return err
	}
	pods, err := t.agents(ctx)
	if err != nil {
		return err
	}
	for _, p := range pods {
		for _, container := range []string{"agent", "dns", "proxy"} {
			out, err := t.kubectl(ctx, "-n", "kube-system", "exec", p, "-c", container, "--", "/wayleave", "listeners")
			if err != nil {
				return fmt.Errorf("%s, %s: %w", p, container, err)
			}
			sockets := 0
			for line := range strings.Lines(out) {
				s, err := listeners.ParseSocket(strings.TrimSpace(line))
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p, container, err)
				}
				if !slices.ContainsFunc(rows, func(r listeners.Row) bool { return r.Allows(s) }) {
					return fmt.Errorf("%s, %s: %s is not in the table of docs/security.md", p, container, s)
				}
				sockets++
			}
			if sockets == 0 {
				return fmt.Errorf("%s, %s: nothing listens", p, container)
			}
		}
	}
	return nil
}
