// Command pause is the process that holds a pod's namespaces. It ends on SIGTERM and SIGINT and reaps orphans, as the
// first process of a shared process namespace must. With the argument -v it prints its name and exits, which kubeadm's
// check of a cluster's health waits for.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

func main() {
	if slices.Contains(os.Args[1:], "-v") {
		fmt.Println("pause of Wayleave's lab")
		return
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}
