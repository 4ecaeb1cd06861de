// Package progress prints progress: one line when a long step begins, one with the elapsed time when it ends, and one
// every half minute in between.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"
)

const heartbeat = 30 * time.Second

// Printer prints steps. It is safe for concurrent use.
type Printer struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
}

// New returns a Printer; times are counted from now.
func New(out io.Writer) *Printer {
	return &Printer{out: out, start: time.Now()}
}

// Printf prints one line, after the seconds since the start.
func (p *Printer) Printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "[%6.1fs] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// Elapsed returns the time since the Printer was created.
func (p *Printer) Elapsed() time.Duration { return time.Since(p.start) }

// Step prints a line before and after f.
func (p *Printer) Step(what string, f func() error) error {
	began := time.Now()
	p.Printf("%s …", what)
	done := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		tick := time.NewTicker(heartbeat)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				p.Printf("%s … still running, %s", what, time.Since(began).Round(time.Second))
			}
		}
	})
	err := f()
	close(done)
	beating.Wait()
	if err != nil {
		p.Printf("%s: failed after %.1fs", what, time.Since(began).Seconds())
		return err
	}
	p.Printf("%s: done in %.1fs", what, time.Since(began).Seconds())
	return nil
}
