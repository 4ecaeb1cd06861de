// Package namespace runs functions in network namespaces.
package namespace

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs fn on a thread of its own in the network namespace of a descriptor, and returns its error; with 0 it runs fn
// on the caller's thread, in the namespace of the process. Sockets that fn opens, and programs that it starts, are of
// that namespace; goroutines that it starts are not. Safe for concurrent use. See setns(2).
func Do(fd int, fn func() error) error {
	if fd == 0 {
		return fn()
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)      // also if fn ends the goroutine
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and serves no other
		if err = unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = fn()
	}()
	<-done
	return err
}
