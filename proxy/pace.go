package proxy

import (
	"time"
)

// write sends a part of a response's body, at the rate of the path.
func (x *exchange) write(p []byte) (n int, err error) {
	o := x.match.Path.Options
	if o == nil || o.Bandwidth <= 0 {
		n, err = x.d.Write(p)
		x.rec.Sent += int64(n)
		return n, err
	}
	if x.opt.paced.IsZero() {
		x.opt.paced = time.Now()
	}
	for len(p) > 0 && err == nil {
		allowed := float64(o.BandwidthAfter) + time.Since(x.opt.paced).Seconds()*float64(
			o.Bandwidth) - float64(x.rec.Sent)
		part := min(len(p), int(max(o.Bandwidth/pacesPerSecond, 1)))
		if o.BandwidthAfter > x.rec.Sent {
			part = min(len(p), int(min(o.BandwidthAfter-x.rec.Sent, 1<<20)))
		}
		if missing := float64(part) - allowed; missing > 0 {
			if err = x.rest(time.Duration(missing / float64(o.Bandwidth) * float64(time.Second))); err != nil {
				return n, err
			}
		}
		m := 0
		m, err = x.d.Write(p[:part])
		n, p = n+m, p[m:]
		x.rec.Sent += int64(m)
	}
	return n, err
}

// pacesPerSecond is how many parts of a rate-limited body are sent per second.
const pacesPerSecond = 10

// rest flushes what was written, and waits.
func (x *exchange) rest(d time.Duration) error {
	if err := x.d.Flush(); err != nil {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-x.ctx.Done():
		return x.ctx.Err()
	}
}
