package peers

import (
	"context"
	"log"
	"log/slog"
	"strings"
)

// logger receives memberlist's log. memberlist repeats its warnings many times a second while a link is down, and
// status and metrics report unreachable peers, so all lines are for debugging.
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
