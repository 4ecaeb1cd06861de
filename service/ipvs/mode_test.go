package ipvs

import (
	"testing"
	"time"
)

// Looking at what others changed takes a twentieth of a core at most, and is done every
// second where that is cheap.
func TestLooksAreRareWhereTheyAreDear(t *testing.T) {
	for _, c := range []struct{ took, rest time.Duration }{{time.Millisecond, time.Second}, {50 * time.Millisecond, time.Second}, {500 * time.Millisecond, 10 * time.Second}} {
		if got := pace(c.took); got != c.rest {
			t.Errorf("after %s a rest of %s, want %s", c.took, got, c.rest)
		}
	}
}
