package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"k8s.io/klog/v2"
)

// What client-go logs has the format and the level of the process.
func TestClientGoLogsToTheLogOfTheProcess(t *testing.T) {
	var out bytes.Buffer
	level := &slog.LevelVar{}
	LogTo(slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level})))
	t.Cleanup(klog.ClearLogger)
	klog.ErrorS(errors.New("lost"), "watch", "kind", "Pod")
	klog.Flush()
	var line struct{ Level, Msg, Kind, From, Err string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Level != "ERROR" || line.Msg != "watch" ||
		line.Kind != "Pod" || line.From != "client-go" {
		t.Errorf("%q: %+v, %v", out.String(), line, err)
	}
	out.Reset()
	level.Set(slog.LevelError)
	klog.InfoS("election")
	klog.Flush()
	if out.Len() > 0 {
		t.Errorf("below the level: %q", out.String())
	}
}
