package logging

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
)

// Level and format change at once, also for loggers that were made before; attributes and groups stay.
func TestALogChangesWhileItIsUsed(t *testing.T) {
	var out bytes.Buffer
	l := New(&out, Settings{Level: slog.LevelWarn})
	log := l.Logger().With("process", "dns").WithGroup("query")
	log.Info("hidden")
	if out.Len() > 0 {
		t.Errorf("below the level: %q", out.String())
	}
	l.Set(Settings{Level: slog.LevelDebug})
	log.Debug("text", "name", "a")
	if text := out.String(); !strings.Contains(text, "to=DEBUG") ||
		!strings.Contains(text, "msg=text process=dns query.name=a\n") {
		t.Errorf("as text: %q", text)
	}
	out.Reset()
	l.Set(Settings{Level: slog.LevelDebug, JSON: true})
	log.Debug("object", "name", "a")
	var line struct {
		Msg, Process string
		Query        struct{ Name string }
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Msg != "object" || line.Process != "dns" ||
		line.Query.Name != "a" {
		t.Errorf("as JSON: %q: %v", out.String(), err)
	}
	out.Reset()
	l.Set(Settings{Level: slog.LevelError, JSON: true})
	log.Warn("hidden")
	if lines := strings.Count(out.String(), "\n"); lines != 1 || !strings.Contains(out.String(), `"to":"ERROR"`) {
		t.Errorf("%q", out.String())
	}
}

// What the agent tells again undoes no change that was made in the container; what it tells anew does.
func TestSettingsOfTheAgentAreTakenWhenTheyChange(t *testing.T) {
	l := New(&bytes.Buffer{}, Settings{})
	s := Source{Log: l}
	warn, debug := Settings{Level: slog.LevelWarn}, Settings{Level: slog.LevelDebug}
	for i, step := range []struct{ told, here, want *Settings }{
		{told: &warn, want: &warn}, {here: &debug, want: &debug}, {told: &warn, want: &debug},
		{told: &Settings{JSON: true}, want: &Settings{JSON: true}}, {told: &warn, want: &warn},
	} {
		if step.told != nil {
			s.Set(*step.told)
		}
		if step.here != nil {
			l.Set(*step.here)
		}
		if got := l.Settings(); got != *step.want {
			t.Errorf("step %d: %+v, want %+v", i, got, *step.want)
		}
	}
}

// A log that is nil, as in tests, is used without a fault.
func TestNoLogIsNothing(t *testing.T) {
	var l *Log
	l.Set(Settings{JSON: true})
	l.Serve(nil)
	Source := Source{}
	Source.Set(Settings{JSON: true})
	calls := 0
	l.Follow(func(Settings) { calls++ })()
	if l.Settings() != (Settings{}) || calls != 1 {
		t.Errorf("%+v, %d calls", l.Settings(), calls)
	}
}

// Only the names of levels are accepted.
func TestLevels(t *testing.T) {
	for _, bad := range []string{"", "INFO", "trace", "info+1", "1"} {
		if l, err := ParseLevel(bad); err == nil {
			t.Errorf("%q is %v", bad, l)
		}
	}
	for _, good := range Levels() {
		if l, err := ParseLevel(good); err != nil || strings.ToLower(l.String()) != good {
			t.Errorf("%q is %v, %v", good, l, err)
		}
	}
}
