package cluster

import (
	"context"
	"fmt"
	"os"

	"wayleave.dev/lab/demo"
)

// Demo plays the guided tour on the lab that is up; only the checks named, if
// any are.
func (l *Lab) Demo(ctx context.Context, only []string) error {
	s, err := load(l.Dirs)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	tour := &demo.Tour{Lab: self, Kubectl: s.Kubectl, Kubeconfig: l.Dirs.Kubeconfig(), Agnhost: s.Agnhost, Out: l.Out}
	return tour.Run(ctx, only)
}
