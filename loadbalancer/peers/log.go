package peers

import (
	"context"
	"log"
	"log/slog"
	"strings"
)

// logger is what memberlist logs to. That a peer is away is news for status and metrics, so
// its lines come a level lower than it thinks.
func logger(to *slog.Logger) *log.Logger { return log.New(lines{to}, "", 0) }

type lines struct{ to *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	text := strings.TrimSpace(string(b))
	level := slog.LevelDebug
	for prefix, at := range map[string]slog.Level{"[ERR] ": slog.LevelWarn, "[WARN] ": slog.LevelInfo, "[INFO] ": slog.LevelDebug, "[DEBUG] ": slog.LevelDebug} {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			text, level = rest, at
			break
		}
	}
	l.to.Log(context.Background(), level, strings.TrimPrefix(text, "memberlist: "))
	return len(b), nil
}
