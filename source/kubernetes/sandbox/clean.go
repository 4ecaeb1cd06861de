package sandbox

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	kubesource "wayleave.dev/source/kubernetes"
)

// Clean lets a pod on each node run `wayleave uninstall` on the node, and writes a line to progress for each node that
// is clean. The error names the nodes that are not.
func Clean(ctx context.Context, client *kubesource.Client, image string, nodes []string, progress io.Writer) error {
	out, err := OnNodes(ctx, client, "uninstall", image, nodes, Access{Writable: true}, "/wayleave", "uninstall",
		"--root", Root)
	if err != nil {
		return err
	}
	var failed []string
	for _, node := range slices.Sorted(maps.Keys(out)) {
		switch o := out[node]; {
		case o.Err != nil:
			failed = append(failed, node+": "+o.Err.Error())
		case o.Failed:
			failed = append(failed, node+": "+strings.TrimSpace(string(o.Text)))
		default:
			fmt.Fprintf(progress, "cleaned node %s\n", node)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("nodes that are not clean: %s", strings.Join(failed, "; "))
	}
	return nil
}
