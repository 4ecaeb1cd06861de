package server

import (
	"context"
	"net/http/httptest"
	"testing"
	"time"
)

// Who has stopped to watch a stream is not told any more that its client left.
func TestNobodyIsToldBehindStop(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	s := &stream{r: httptest.NewRequestWithContext(ctx, "GET", "/", nil)}
	began, release, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	stop := s.Watch(func() {
		close(began)
		<-release
	})
	leave()
	<-began
	go func() {
		stop()
		close(ended)
	}()
	select {
	case <-ended:
		t.Error("stop returns while the client's end is told")
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	<-ended
}
