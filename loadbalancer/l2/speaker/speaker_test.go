package speaker

import (
	"testing"
	"time"
)

// Exactly one node answers for each address, in both families, as arping and ndisc6 see it.
func TestExactlyOneNodeAnswers(t *testing.T) {
	w := newWorld(t, 3)
	addrs := w.vips(2)
	w.start()
	w.settled(addrs)
	for _, a := range addrs {
		owner, err := w.owner(a)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.one(a, 5*time.Second); got != owner {
			t.Errorf("%s is answered by %s, and %s says that it owns it", a, got.name, owner.name)
		}
	}
}
