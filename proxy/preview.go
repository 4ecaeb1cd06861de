package proxy

import (
	"context"
	"errors"
	"io"

	"wayleave.dev/proxy/message"
	"wayleave.dev/proxy/schema"
)

// Preview is the predicted result of a request.
type Preview struct {
	// Status and Location describe a response by the proxy itself; 0 and empty if the request is forwarded.
	Status   int
	Location string
	// Backend is the key of the backend that gets the request, Target the target of its request line.
	Backend, Target string
	// Path is the one that serves the request; nil for none. Its guards were not evaluated.
	Path *schema.Path
}

// Preview predicts the result of a request, with the code that serves requests, without evaluating guards and without
// an endpoint. The request may be changed.
func (p *Proxy) Preview(r *message.Request) Preview {
	d := &previewed{r: r}
	x := &exchange{p: p, ctx: context.Background(), d: d, r: r}
	x.rec.Request = r
	answered := x.find()
	if !answered {
		x.opt.backend = x.match.Path.Backend
		if o := x.match.Path.Options; o != nil {
			answered = x.early(o, x.match.Ready) || x.late(o, x.match.Ready)
		}
	}
	out := Preview{Status: d.status, Location: string(d.location), Path: x.rec.Path}
	if answered {
		return out
	}
	if b := p.Upstreams.Lookup(x.opt.backend); b == nil || len(b.All()) == 0 {
		out.Status = 503
		return out
	}
	out.Backend, out.Target = x.opt.backend, string(r.Target)
	return out
}

// previewed is a client that keeps the head of the response.
type previewed struct {
	r        *message.Request
	status   int
	location []byte
}

var errPreview = errors.New("a preview has no connection")

func (d *previewed) Request() *message.Request   { return d.r }
func (d *previewed) Read([]byte) (int, error)    { return 0, io.EOF }
func (d *previewed) Buffered() int               { return 0 }
func (d *previewed) Ready() bool                 { return true }
func (d *previewed) Trailers() message.Fields    { return nil }
func (d *previewed) Write(b []byte) (int, error) { return len(b), nil }
func (d *previewed) Flush() error                { return nil }
func (d *previewed) Finish(message.Fields) error { return nil }
func (d *previewed) Responded() bool             { return d.status != 0 }
func (d *previewed) Watch(func()) (stop func())  { return func() {} }
func (d *previewed) StopReading()                {}
func (d *previewed) Abort()                      {}
func (d *previewed) Respond(r *message.Response) error {
	d.status, d.location = r.Status, r.Fields.Get("Location")
	return nil
}
func (d *previewed) Switch(*message.Response) (io.ReadWriteCloser, error) { return nil, errPreview }
