package peers

import (
	"context"
	"log"
	"log/slog"
	"strings"
)

// logger is what memberlist logs to. What it calls a warning, it says many times a second while a
// link is down; that a peer is away is told by status and metrics, so all is for debugging.
func logger(to *slog.Logger) *log.Logger { return log.New(lines{to}, "", 0) }

type lines struct{ to *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	text := strings.TrimSpace(string(b))
	if i := strings.Index(text, "memberlist: "); i >= 0 {
		text = text[i+len("memberlist: "):]
	}
	l.to.Log(context.Background(), slog.LevelDebug, "heartbeats: "+text)
	return len(b), nil
}
