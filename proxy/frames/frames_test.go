package frames

import (
	"encoding/json"
	"testing"

	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/wiretest"
	"wayleave.dev/proxy/schema"
)

// An agent and a proxy of two versions overlap in an upgrade, and two agents hand sockets over: frames stay as
// version 1 wrote them.
func TestFramesOfAnEarlierVersion(t *testing.T) {
	if v := Handoff().Version; v != 1 {
		t.Fatalf("version %d has no files", v)
	}
	wiretest.Unchanged[handoff.Hello[schema.Socket]](t, "testdata/v1/hello.json")
	wiretest.Unchanged[Update](t, "testdata/v1/update.json")
	wiretest.Unchanged[Report](t, "testdata/v1/report.json")
	wiretest.Unchanged[Listening](t, "testdata/v1/listening.json")
}

// An agent of an earlier version refuses fields that it does not know: a proxy's hello has none of them.
func TestTheHelloHasNoNewField(t *testing.T) {
	raw, err := json.Marshal(handoff.Hello[schema.Socket]{Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != `{"version":1}` {
		t.Errorf("the hello is %s", raw)
	}
}
