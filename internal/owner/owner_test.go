package owner

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

func TestTheSecondWaitsForTheFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "owner.lock")
	first, err := Acquire(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	waits, got := make(chan struct{}), make(chan *Lock, 1)
	go func() {
		l, err := Acquire(t.Context(), path, func() { close(waits) })
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	if awaited, err := first.Awaited(); err != nil || awaited {
		select {
		case <-waits: // it had begun to wait meanwhile
		default:
			t.Errorf("nobody waits, Awaited says %v, %v", awaited, err)
		}
	}
	<-waits
	if awaited, err := first.Awaited(); err != nil || !awaited {
		t.Errorf("somebody waits, Awaited says %v, %v", awaited, err)
	}
	select {
	case <-got:
		t.Fatal("two owners at once")
	default:
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	select {
	case l := <-got:
		if err := l.Release(); err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the second never became owner")
	}
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "owner.lock")
	l, err := Acquire(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Acquire(ctx, path, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if awaited, err := l.Awaited(); err != nil || awaited {
		t.Errorf("nobody waits any more, Awaited says %v, %v", awaited, err)
	}
}
