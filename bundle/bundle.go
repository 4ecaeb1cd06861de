// Package bundle collects the state of an installation for whoever helps: one archive, redacted and bounded.
//
// Invariants:
//   - No Secret is read. What else may hold a secret is redacted before it is in the archive.
//   - A part that fails or is cut is named in the index; it costs no other part.
//   - Each part, the archive and the time have a bound; at most AtOnce parts are in memory.
package bundle

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// Part is a file of the archive.
type Part struct {
	// Name is its path in the archive.
	Name string
	// Read returns the content, at most limit bytes, and an error beside what it has.
	Read func(ctx context.Context, limit int) ([]byte, error)
}

// Limits bound a bundle.
type Limits struct {
	// Part and Total are bytes, before compression.
	Part, Total int
	// Within is for all parts together, and PartWithin for each.
	Within, PartWithin time.Duration
	AtOnce             int
}

// DefaultLimits are those of the command: 4 MiB a part, 256 MiB together, 5 minutes.
func DefaultLimits() Limits {
	return Limits{Part: 4 << 20, Total: 256 << 20, Within: 5 * time.Minute, PartWithin: 30 * time.Second, AtOnce: 8}
}

// Entry is a line of the index.
type Entry struct {
	Name  string `json:"name"`
	Bytes int    `json:"bytes"`
	// Cut says that the content is longer, and Error why it is missing or incomplete.
	Cut   bool   `json:"cut,omitempty"`
	Error string `json:"error,omitempty"`
}

// Index is the file index.json of the archive.
type Index struct {
	Version string    `json:"version"`
	Made    time.Time `json:"made"`
	Parts   []Entry   `json:"parts"`
	// Failed counts parts that are missing or incomplete.
	Failed int `json:"failed"`
}

var (
	errFull = errors.New("left out: the archive has its largest size")
	errCut  = errors.New("the content is longer than a part may be")
)

// Write makes the archive, a .tar.gz below the folder root. The index is its last file. The error says that the archive
// is not whole, such as of a full disk; parts that fail are in the index.
func Write(ctx context.Context, w io.Writer, root, version string, parts []Part, l Limits) (Index, error) {
	ctx, cancel := context.WithTimeout(ctx, l.Within)
	defer cancel()
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	index := Index{Version: version, Made: time.Now().UTC(), Parts: []Entry{}}
	left := l.Total
	for i, result := range readAll(ctx, parts, l) {
		p, r := parts[i], <-result
		e := Entry{Name: p.Name}
		body := r.body
		if len(body) > l.Part {
			body, r.err = body[:l.Part], errors.Join(r.err, errCut)
			e.Cut = true
		}
		if strings.HasSuffix(p.Name, ".json") {
			body = redactJSON(body)
		} else {
			body = Redact(body)
		}
		if len(body) > left {
			body, r.err = nil, errors.Join(r.err, errFull)
		}
		if r.err != nil {
			e.Error = strings.Join(strings.Fields(string(Redact([]byte(r.err.Error())))), " ")
			index.Failed++
		}
		e.Bytes = len(body)
		left -= len(body)
		index.Parts = append(index.Parts, e)
		if len(body) > 0 {
			if err := put(archive, path.Join(root, p.Name), body, index.Made); err != nil {
				return index, err
			}
		}
	}
	raw, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return index, fmt.Errorf("index: %w", err)
	}
	if err := put(archive, path.Join(root, "index.json"), raw, index.Made); err != nil {
		return index, err
	}
	return index, errors.Join(archive.Close(), zip.Close())
}

func put(archive *tar.Writer, name string, body []byte, at time.Time) error {
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(body)),
		ModTime: at}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := archive.Write(body); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

type content struct {
	body []byte
	err  error
}

// readAll reads parts, AtOnce at a time, in their order. Each has a channel for its content, which must be received in
// that order: a part starts only when one of those before it has been received.
func readAll(ctx context.Context, parts []Part, l Limits) []chan content {
	out := make([]chan content, len(parts))
	for i := range out {
		out[i] = make(chan content)
	}
	slots := make(chan struct{}, l.AtOnce)
	go func() {
		for i, p := range parts {
			slots <- struct{}{}
			go func() {
				out[i] <- read(ctx, p, l)
				<-slots
			}()
		}
	}()
	return out
}

// read calls a part. It does not wait for one that ignores its context.
func read(ctx context.Context, p Part, l Limits) content {
	if ctx.Err() != nil {
		return content{err: fmt.Errorf("left out: %w", context.Cause(ctx))}
	}
	ctx, cancel := context.WithTimeout(ctx, l.PartWithin)
	defer cancel()
	done := make(chan content, 1)
	go func() {
		body, err := p.Read(ctx, l.Part+1)
		done <- content{body, err}
	}()
	select {
	case c := <-done:
		return c
	case <-ctx.Done():
		select {
		case c := <-done:
			return c
		case <-time.After(time.Second):
			return content{err: ctx.Err()}
		}
	}
}
