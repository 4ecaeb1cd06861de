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

// switchTo connects both connections to each other, as after a WebSocket's handshake. The request's body precedes the
// other protocol (RFC 9110, 7.8), so it waits for a running upload.
func (x *exchange) switchTo(c *h1.Client, resp *message.Response, up *upload) error {
	if len(resp.Upgrade) == 0 && !bytes.Contains(x.r.Upgrade, comma) {
		resp.Upgrade = x.r.Upgrade // some servers do not repeat the only protocol that was offered
	}
	if !isOffered(x.r.Upgrade, resp.Upgrade) {
		return fmt.Errorf("the endpoint switches to protocol %q, the client offered %q", resp.Upgrade, x.r.Upgrade)
	}
	if err := up.complete(); err != nil {
		return err
	}
	x.rec.Status = resp.Status
	x.respond(resp)
	x.named(&resp.Fields)
	client, err := x.d.Switch(resp)
	if err != nil {
		return errors.Join(errClient, err)
	}
	server := c.Switch()
	x.rec.Sent += tunnel(x.p.track(), client, server)
	return nil
}

var comma = []byte(",")

// isOffered reports whether the client offered all protocols of a 101.
func isOffered(asked, chosen []byte) bool {
	if len(asked) == 0 || len(chosen) == 0 {
		return false
	}
	for one := range bytes.SplitSeq(chosen, comma) {
		found := false
		for a := range bytes.SplitSeq(asked, comma) {
			found = found || bytes.EqualFold(bytes.TrimSpace(a), bytes.TrimSpace(one))
		}
		if !found {
			return false
		}
	}
	return true
}

// tunnel copies both ways until both ends have ended, then calls done.
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

// halfOpen is how long one direction of a tunnel may continue after the other has ended.
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
