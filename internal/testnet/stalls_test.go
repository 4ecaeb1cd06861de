package testnet

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// failing is a test that notes its failure.
type failing struct {
	*testing.T
	failed bool
}

func (f *failing) Fatalf(string, ...any) { f.failed = true; panic(f) }

// Without stalls, the bound of the product is the bound of the test.
func TestPromptlyWithoutStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{T: t}
		start := time.Now()
		func() {
			defer func() { _ = recover() }()
			Promptly(f, time.Second, func() error { return errors.New("never") })
		}()
		if took := time.Since(start); !f.failed || took < time.Second || took > time.Second+2*stallEvery {
			t.Errorf("failed: %t, after %s", f.failed, took)
		}
	})
}
