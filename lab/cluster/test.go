package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"wayleave.dev/lab/build"
	"wayleave.dev/lab/e2e"
	"wayleave.dev/lab/fabric"
	"wayleave.dev/lab/images"
	"wayleave.dev/lab/place"
)

// Tests selects Kubernetes' end-to-end tests.
type Tests struct {
	Filter string // regular expression on full names
	Skip   string // likewise
	Procs  int    // how many run concurrently
	// CoreDNS adds CoreDNS to the image of the test program first.
	CoreDNS bool
}

// Test runs end-to-end tests from the client behind the gateway. It returns an error if one fails, or if the filter
// matches none.
func (l *Lab) Test(ctx context.Context, tests Tests) error {
	for flag, expression := range map[string]string{"FILTER": tests.Filter, "--skip": tests.Skip} {
		if _, err := regexp.Compile(expression); err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
	}
	if tests.Procs < 1 {
		return fmt.Errorf("--procs %d: must be at least 1", tests.Procs)
	}
	s, err := load(l.Dirs)
	if err != nil {
		return err
	}
	programs, err := l.buildTests(ctx)
	if err != nil {
		return err
	}
	if tests.CoreDNS {
		if err := l.loadCoreDNS(ctx); err != nil {
			return err
		}
	}
	out := filepath.Join(l.Dirs.State, "e2e")
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	log, err := os.Create(filepath.Join(out, "e2e.log"))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer log.Close()
	args := []string{"--procs=" + strconv.Itoa(tests.Procs), "--no-color", "--focus=" + tests.Filter,
		"--skip=" + tests.Skip,
		"--junit-report=junit.xml", "--output-dir=" + out, "--timeout=3h", programs.E2E, "--",
		"--provider=skeleton", "--kubeconfig=" + l.Dirs.FabricKubeconfig(), "--kubectl-path=" + s.Kubectl,
		"--num-nodes=" + strconv.Itoa(s.Nodes), "--disable-log-dump", "--report-dir=" + out}
	cmd := exec.CommandContext(ctx, programs.Ginkgo, args...)
	cmd.Dir = out
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Dirs.FabricKubeconfig(), "PATH="+filepath.Dir(s.Kubectl)+":"+
		os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = io.MultiWriter(log, e2e.Progress(l.Out)), log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	failed := fabric.Do(fabric.Client, cmd.Start)
	if failed == nil {
		failed = cmd.Wait()
	}
	return l.summarize(out, failed)
}

func (l *Lab) buildTests(ctx context.Context) (tests *build.Tests, err error) {
	err = l.building(ctx, func(cache *build.Cache, checkout string) error {
		tests, err = cache.Tests(ctx, checkout)
		return err
	})
	return tests, err
}

// loadCoreDNS loads the image of the test program with CoreDNS into the nodes.
func (l *Lab) loadCoreDNS(ctx context.Context) error {
	return l.building(ctx, func(cache *build.Cache, checkout string) error {
		programs, err := cache.Programs(ctx, checkout)
		if err != nil {
			return err
		}
		archive, err := images.AgnhostWithCoreDNS(ctx, cache, programs)
		if err != nil {
			return err
		}
		return l.Load(ctx, archive)
	})
}

// building calls a function with exclusive access to the cache of builds.
func (l *Lab) building(ctx context.Context, do func(cache *build.Cache, checkout string) error) error {
	checkout, err := place.Checkout()
	if err != nil {
		return err
	}
	cache := l.Cache()
	unlock, err := cache.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return do(cache, checkout)
}

func (l *Lab) summarize(out string, failed error) error {
	file, err := os.Open(filepath.Join(out, "junit.xml"))
	if err != nil {
		return fmt.Errorf("lab: the tests did not complete; see %s: %w", filepath.Join(out, "e2e.log"),
			errors.Join(failed, err))
	}
	defer file.Close()
	results, err := e2e.Read(file)
	if err != nil {
		return err
	}
	results.Print(l.Out)
	fmt.Fprintf(l.Out, "log and JUnit report in %s\n", out)
	if err := results.Err(); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("lab: ginkgo: %w; see %s", failed, filepath.Join(out, "e2e.log"))
	}
	return nil
}
