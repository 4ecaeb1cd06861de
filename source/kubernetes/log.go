package kubernetes

import (
	"log/slog"

	"k8s.io/klog/v2"
)

// LogTo has what client-go logs written to a log of the process. Call it once, before any client is made.
func LogTo(log *slog.Logger) { klog.SetSlogLogger(log.With("from", "client-go")) }
