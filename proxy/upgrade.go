package proxy

import (
	"errors"
	"io"
	"sync"
	"time"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
)

// switchTo hands both connections over to each other, as after a WebSocket's handshake.
func (x *exchange) switchTo(c *h1.Client, resp *message.Response) error {
	if len(x.r.Upgrade) == 0 {
		return errors.New("the endpoint changes a protocol that nobody asked it to")
	}
	x.rec.Status = resp.Status
	client, err := x.d.Switch(resp)
	if err != nil {
		return errors.Join(errClient, err)
	}
	_ = c.Conn().SetDeadline(time.Time{})
	server := c.Switch()
	x.rec.Sent += tunnel(x.p.track(client, server), client, server)
	return nil
}

// tunnel copies both ways until both ends have ended; done is called then.
func tunnel(done func(), client, server io.ReadWriteCloser) (sent int64) {
	defer done()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(server, client)
		closeWrite(server)
	})
	sent, _ = io.Copy(client, server)
	closeWrite(client)
	wg.Wait()
	_, _ = client.Close(), server.Close()
	return sent
}

func closeWrite(c io.Closer) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
		return
	}
	_ = c.Close()
}
