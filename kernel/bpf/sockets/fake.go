package sockets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Fake is a Conn in memory.
type Fake struct {
	// Fail may refuse a frontend.
	Fail func(Frontend) error
	// Have are the frontends in the maps, Node the facts.
	Have map[Key]Frontend
	Node Node
	// Attached reports whether the programs are attached.
	Attached bool
	// Sets counts frontends that were set or deleted. Log has a line for each call that changes something.
	Sets int
	Log  []string
}

var _ Conn = (*Fake)(nil)

// NewFake returns a Fake without frontends.
func NewFake() *Fake { return &Fake{Have: map[Key]Frontend{}} }

// Attach implements Conn.
func (f *Fake) Attach(context.Context) error {
	f.Attached = true
	return nil
}

// Frontends implements Conn.
func (f *Fake) Frontends(context.Context) (out []Frontend, err error) {
	if !f.Attached {
		return nil, errors.New("not attached")
	}
	for _, e := range f.Have {
		out = append(out, e)
	}
	return out, nil
}

// Set implements Conn.
func (f *Fake) Set(_ context.Context, list []Frontend) map[Key]error {
	failed := map[Key]error{}
	for _, e := range list {
		if f.Fail != nil {
			if err := f.Fail(e); err != nil {
				failed[e.Key] = err
				continue
			}
		}
		f.Sets++
		f.Log = append(f.Log, "set "+e.String())
		f.Have[e.Key] = e
	}
	return failed
}

// Delete implements Conn.
func (f *Fake) Delete(_ context.Context, list []Key) error {
	for _, k := range list {
		if _, ok := f.Have[k]; ok {
			f.Sets++
			f.Log = append(f.Log, "delete "+k.String())
			delete(f.Have, k)
		}
	}
	return nil
}

// SetNode implements Conn.
func (f *Fake) SetNode(_ context.Context, n Node) error {
	f.Node = n
	return nil
}

// Watch implements Conn.
func (f *Fake) Watch(ctx context.Context) (<-chan struct{}, error) {
	out := make(chan struct{})
	context.AfterFunc(ctx, func() { close(out) })
	return out, nil
}

// Remove implements Conn.
func (f *Fake) Remove(context.Context) error {
	f.Have, f.Attached = map[Key]Frontend{}, false
	return nil
}

// Remains implements Conn.
func (f *Fake) Remains(context.Context) (out []string, err error) {
	if f.Attached {
		out = append(out, "programs")
	}
	return out, nil
}

// Text prints the state.
func (f *Fake) Text() string {
	var lines []string
	for _, e := range f.Have {
		lines = append(lines, e.String())
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// String reads "TCP 10.96.0.1:80".
func (k Key) String() string { return fmt.Sprintf("%s %s", k.Protocol, k.At) }

// String reads "TCP 10.96.0.1:80 → 10.244.1.5:8080, 10.244.2.9:8080".
func (f Frontend) String() string {
	var b strings.Builder
	b.WriteString(f.Key.String())
	if f.PodsOnly {
		b.WriteString(", pods only")
	}
	sep := " → "
	for _, at := range f.Backends {
		fmt.Fprintf(&b, "%s%s", sep, at)
		sep = ", "
	}
	return b.String()
}
