package writeback

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseName is the Lease, in the namespace of the DaemonSet, that elects the writer of cluster-wide objects.
const LeaseName = "wayleave-writer"

// Elect takes part in the election until ctx ends. While this replica is elected it runs fn, whose context ends when
// the leadership is lost. identity must be unique per pod. When ctx ends, leadership is released only after fn has
// returned, so that two replicas never write at once. It returns ctx's error.
func Elect(ctx context.Context, client kubernetes.Interface, namespace, identity string, log *slog.Logger,
	fn func(context.Context)) error {
	// The election outlives ctx until fn has returned.
	leading, resign := context.WithCancel(context.WithoutCancel(ctx))
	defer resign()
	var running sync.Mutex // held by fn
	stop := context.AfterFunc(ctx, func() {
		running.Lock()
		defer running.Unlock()
		resign()
	})
	defer stop()
	for ctx.Err() == nil {
		e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: LeaseName},
				Client:     client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
			},
			LeaseDuration:   15 * time.Second,
			RenewDeadline:   10 * time.Second,
			RetryPeriod:     2 * time.Second,
			ReleaseOnCancel: true,
			Name:            LeaseName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(term context.Context) {
					running.Lock()
					defer running.Unlock()
					term, cancel := context.WithCancel(term)
					defer cancel()
					defer context.AfterFunc(ctx, cancel)()
					if term.Err() != nil {
						return
					}
					log.Info("elected as the writer of cluster-wide objects")
					fn(term)
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("lease %s: %w", LeaseName, err)
		}
		e.Run(leading)
	}
	return ctx.Err()
}
