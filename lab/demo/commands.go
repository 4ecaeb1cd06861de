package demo

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// program is Wayleave's own, as an operator has it on a laptop.
func (t *Tour) program() string {
	return filepath.Join(filepath.Dir(t.Lab), runtime.GOARCH, "wayleave")
}

// wayleave runs it with the cluster's kubeconfig.
func (t *Tour) wayleave(ctx context.Context, args ...string) (string, error) {
	return t.command(ctx, nil, t.program(), args...)
}

// statusOfAll asks all nodes at once, and one of them alone.
func statusOfAll(ctx context.Context, t *Tour) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		out, err := t.wayleave(ctx, "status")
		all := fmt.Sprintf("%d of %d nodes answer", len(nodes), len(nodes))
		if err := errors.Join(err, want(out, append(nodes, all, "writer, elected",
			"nothing is wrong")...)); err != nil {
			return err
		}
		out, err = t.wayleave(ctx, "status", "--node", nodes[0], "-o", "yaml")
		return errors.Join(err, want(out, "node: "+nodes[0], "mode: nftables"))
	})
}

// checked runs the checks of the cluster and of a node: both end with status 0.
func checked(ctx context.Context, t *Tour) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	return eventually(ctx, func() error {
		out, err := t.wayleave(ctx, "check")
		if err := errors.Join(err, want(out, "the writer has a leader", "DNS answers for", " 0 failed")); err != nil {
			return err
		}
		out, err = t.command(ctx, nil, t.Lab, "exec", nodes[0], t.program(), "check", "--pre", "--node")
		if err := errors.Join(err, want(out, "the kernel has nf_tables", "all ports that Wayleave uses are free",
			" 0 failed")); err != nil {
			return err
		}
		out, err = t.wayleave(ctx, "check", "--pre", "--image", "", "--probe-image", "wayleave.dev/wayleave:dev")
		return errors.Join(err, want(out, fmt.Sprintf("%d nodes: the kernel has nf_tables", len(nodes)), " 0 failed"),
			noTests(ctx, t))
	})
}

// bundled makes a support bundle, and looks for what each node has in it.
func bundled(ctx context.Context, t *Tour) error {
	nodes, err := t.nodes(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wayleave-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "bundle.tar.gz")
	out, err := t.wayleave(ctx, "support-bundle", "--to", file)
	if err := errors.Join(err, want(out, "all complete")); err != nil {
		return err
	}
	names, err := archived(file)
	if err != nil {
		return err
	}
	needed := []string{"bundle/index.json", "bundle/check.txt", "bundle/objects/services.yaml"}
	for _, n := range nodes {
		needed = append(needed, "bundle/nodes/"+n+"/status.json", "bundle/nodes/"+n+"/nftables.txt",
			"bundle/nodes/"+n+"/metrics.txt")
	}
	return want(names, needed...)
}

// archived lists the files of a .tar.gz, a line each.
func archived(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return b.String(), nil
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&b, h.Name)
	}
}
