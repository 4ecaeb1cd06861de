package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Host installs the Debian packages of missing programs: program → package.
func (c *Cache) Host(ctx context.Context, need map[string]string) error {
	var packages, programs []string
	for program, pkg := range need {
		if _, err := exec.LookPath(program); err != nil {
			packages, programs = append(packages, pkg), append(programs, program)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("the lab needs the programs %s, and there is no apt-get to install them with",
			strings.Join(programs, ", "))
	}
	return c.Progress.Step("install Debian packages "+strings.Join(packages, " "), func() error {
		install := append([]string{"install", "-y", "--no-install-recommends"}, packages...)
		if err := c.apt(ctx, install...); err == nil {
			return nil
		}
		// The package lists may be old or missing.
		if err := c.apt(ctx, "update"); err != nil {
			return err
		}
		return c.apt(ctx, install...)
	})
}

// Root unpacks Debian packages, with their dependencies, into a folder of the cache and returns it. Nothing is
// installed on this machine.
func (c *Cache) Root(ctx context.Context, name string, packages ...string) (string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	inputs := append([]string{codename(string(release)), "2"}, packages...)
	return c.Make(name, name+" from Debian's packages", inputs, func(dir string) error {
		debs := filepath.Join(c.Dir, "debs.part")
		defer os.RemoveAll(debs)
		if err := c.download(ctx, debs, packages); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
		if err != nil || len(files) == 0 {
			return errors.Join(fmt.Errorf("apt-get downloaded nothing for %s", strings.Join(packages, " ")), err)
		}
		for _, file := range files {
			if err := c.run(ctx, dir, nil, "dpkg", "-x", file, dir); err != nil {
				return err
			}
		}
		// dpkg created the folder with base-files' mode; documentation is not needed.
		for _, useless := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info",
			"usr/share/lintian"} {
			if err := os.RemoveAll(filepath.Join(dir, useless)); err != nil {
				return err
			}
		}
		return nil
	})
}

// download fetches the packages with all dependencies: with an empty status file, apt assumes that nothing is
// installed.
func (c *Cache) download(ctx context.Context, dir string, packages []string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return err
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return err
	}
	args := append([]string{"install", "-y", "--no-install-recommends", "--download-only",
		"-o", "Dir::State::status=" + status, "-o", "Dir::Cache::archives=" + dir, "-o", "APT::Sandbox::User=root",
		"-o", "Debug::NoLocking=1"}, packages...)
	if err := c.apt(ctx, args...); err == nil {
		return nil
	}
	if err := c.apt(ctx, "update"); err != nil {
		return err
	}
	return c.apt(ctx, args...)
}

func (c *Cache) apt(ctx context.Context, args ...string) error {
	return c.run(ctx, "/", []string{"DEBIAN_FRONTEND=noninteractive"}, "apt-get", append([]string{"-q"}, args...)...)
}

// codename returns the release's name in the text of os-release.
func codename(text string) string {
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return "unknown"
}
