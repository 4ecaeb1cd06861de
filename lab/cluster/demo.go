package cluster

import (
	"context"
	"fmt"
	"os"

	"wayleave.dev/lab/demo"
)

// Demo runs the selected checks of the guided tour on the running lab.
func (l *Lab) Demo(ctx context.Context, which demo.Selection) error {
	s, err := load(l.Dirs)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	tour := &demo.Tour{Lab: self, Kubectl: s.Kubectl, Kubeconfig: l.Dirs.Kubeconfig(), Agnhost: s.Agnhost, Out: l.Out,
		Server: fmt.Sprintf("https://127.0.0.1:%d", s.Port)}
	return tour.Run(ctx, which)
}
