package server

import (
	"testing"

	"wayleave.dev/internal/wiretest"
)

// A new version starts from the snapshot that the version before left on the disk, and the reverse.
func TestTheSnapshotOfAnEarlierVersion(t *testing.T) {
	wiretest.Unchanged[saved](t, "testdata/v2/snapshot.json")
}
