package frames

import (
	"testing"

	"wayleave.dev/dns/schema"
	"wayleave.dev/internal/handoff"
	"wayleave.dev/internal/wiretest"
)

// An agent and a server of two versions overlap in an upgrade: frames stay as version 2 wrote them.
func TestFramesOfAnEarlierVersion(t *testing.T) {
	if Version != 2 {
		t.Fatalf("version %d has no files", Version)
	}
	wiretest.Unchanged[handoff.Hello[schema.Socket]](t, "testdata/v2/hello.json")
	wiretest.Unchanged[Update](t, "testdata/v2/update.json")
	wiretest.Unchanged[News](t, "testdata/v2/news.json")
}
