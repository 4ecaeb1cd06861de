package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"wayleave.dev/proxy/h1"
	"wayleave.dev/proxy/message"
)

// switchTo hands both connections over to each other, as after a WebSocket's handshake.
func (x *exchange) switchTo(c *h1.Client, resp *message.Response) error {
	if len(x.r.Upgrade) == 0 || !bytes.EqualFold(x.r.Upgrade, resp.Upgrade) {
		return fmt.Errorf("the endpoint changes to protocol %q, the client asked for %q", resp.Upgrade, x.r.Upgrade)
	}
	x.rec.Status = resp.Status
	x.respond(resp)
	client, err := x.d.Switch(resp)
	if err != nil {
		return errors.Join(errClient, err)
	}
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
		halfDeadline(server)
	})
	sent, _ = io.Copy(client, server)
	closeWrite(client)
	halfDeadline(client)
	wg.Wait()
	_, _ = client.Close(), server.Close()
	return sent
}

// halfOpen is how long one direction of a tunnel may go on after the other has ended.
const halfOpen = time.Minute

func halfDeadline(c io.Closer) {
	if t, ok := c.(interface{ SetDeadline(time.Time) error }); ok {
		_ = t.SetDeadline(time.Now().Add(halfOpen))
	}
}

func closeWrite(c io.Closer) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
		return
	}
	_ = c.Close()
}
