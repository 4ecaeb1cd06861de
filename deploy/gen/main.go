// Command gen writes wayleave.yaml and the Helm chart: `make gen`.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"wayleave.dev/deploy"
)

func main() {
	if err := run("deploy"); err != nil {
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
