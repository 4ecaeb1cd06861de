// Package logging is the log of a process: its format and level, which can change while it runs.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Settings say what a log has, and how it is written.
type Settings struct {
	// Level is the lowest that is written.
	Level slog.Level `json:"level"`
	// JSON writes an object of JSON for each line, in place of text.
	JSON bool `json:"json,omitempty"`
}

// Levels are the names of the levels, the most talkative first.
func Levels() []string { return []string{"debug", "info", "warn", "error"} }

// ParseLevel reads one of Levels.
func ParseLevel(s string) (slog.Level, error) {
	var l slog.Level
	if !slices.Contains(Levels(), s) {
		return l, fmt.Errorf("level: found %q; allowed: %s", s, strings.Join(Levels(), ", "))
	}
	return l, l.UnmarshalText([]byte(s))
}

// Log is the log of a process. Its methods are safe for concurrent use. A nil Log has the zero settings and cannot be
// changed.
type Log struct {
	level  slog.LevelVar
	json   atomic.Bool
	logger *slog.Logger

	mu        sync.Mutex
	followers map[*func(Settings)]struct{}
}

// New makes a log that is written to w.
func New(w io.Writer, s Settings) *Log {
	l := &Log{followers: map[*func(Settings)]struct{}{}}
	l.level.Set(s.Level)
	l.json.Store(s.JSON)
	o := &slog.HandlerOptions{Level: &l.level}
	l.logger = slog.New(handler{log: l, text: slog.NewTextHandler(w, o), json: slog.NewJSONHandler(w, o)})
	return l
}

// Logger returns what writes to the log.
func (l *Log) Logger() *slog.Logger { return l.logger }

// Settings returns those in force.
func (l *Log) Settings() Settings {
	if l == nil {
		return Settings{}
	}
	return Settings{l.level.Level(), l.json.Load()}
}

// Set changes the settings, and tells all followers. A change of the level is logged, whatever the level.
func (l *Log) Set(s Settings) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.Settings()
	if was == s {
		return
	}
	l.level.Set(s.Level)
	l.json.Store(s.JSON)
	if was.Level != s.Level {
		l.logger.Log(context.Background(), max(s.Level, slog.LevelInfo), "the level of the log has changed",
			"from", was.Level, "to", s.Level)
	}
	for f := range l.followers {
		(*f)(s)
	}
}

// Source passes on the settings that another process sends, when they change: those that were set here meanwhile stay
// until then.
type Source struct {
	Log  *Log
	last Settings
}

// Set takes settings of the other process.
func (s *Source) Set(next Settings) {
	if next != s.last {
		s.last = next
		s.Log.Set(next)
	}
}

// Follow calls fn with the settings in force, and with each change until stop. fn must not wait and not call the log.
func (l *Log) Follow(fn func(Settings)) (stop func()) {
	if l == nil {
		fn(Settings{})
		return func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(l.Settings())
	l.followers[&fn] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.followers, &fn)
	}
}

// handler writes each record in the format of the moment.
type handler struct {
	log        *Log
	text, json slog.Handler
}

// Enabled implements slog.Handler.
func (h handler) Enabled(ctx context.Context, l slog.Level) bool { return h.text.Enabled(ctx, l) }

// Handle implements slog.Handler.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if h.log.json.Load() {
		return h.json.Handle(ctx, r)
	}
	return h.text.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h handler) WithAttrs(list []slog.Attr) slog.Handler {
	return handler{h.log, h.text.WithAttrs(list), h.json.WithAttrs(list)}
}

// WithGroup implements slog.Handler.
func (h handler) WithGroup(name string) slog.Handler {
	return handler{h.log, h.text.WithGroup(name), h.json.WithGroup(name)}
}
