// Command gen writes wayleave.yaml, the Helm chart, the alerts and dashboards, and the generated pages of the
// documentation: `make gen`.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"wayleave.dev/cmd/wayleave/commands"
	"wayleave.dev/deploy"
	"wayleave.dev/deploy/observability"
	"wayleave.dev/internal/cli"
	"wayleave.dev/internal/docs"
	"wayleave.dev/internal/metricdocs"
)

func main() {
	if err := errors.Join(run("deploy"), pages("."), metrics(".")); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	m, err := deploy.Manifest()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "wayleave.yaml"), m, 0o644); err != nil {
		return err
	}
	files, err := deploy.Chart()
	if err != nil {
		return err
	}
	for name, body := range files {
		file := filepath.Join(dir, "chart", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func metrics(top string) error {
	page, err := metricdocs.Page()
	if err != nil {
		return err
	}
	files, err := observability.Files()
	if err != nil {
		return err
	}
	files[metricdocs.File] = page
	return write(top, files)
}

func pages(top string) error {
	files, err := docs.Files(os.DirFS(top))
	if err != nil {
		return err
	}
	files["docs/cli.md"] = cli.Markdown(commands.Root(deploy.Release{}, nil, ""))
	return write(top, files)
}

func write(top string, files map[string][]byte) error {
	for file, body := range files {
		if err := os.WriteFile(filepath.Join(top, file), body, 0o644); err != nil {
			return err
		}
	}
	return nil
}
