package proxy

import (
	"sync"
	"sync/atomic"
)

// Bodies are copied with large buffers, which cost a third less CPU than small ones, until so many are in use that more
// would take too much memory: a client that reads slowly keeps one.
const (
	largeBuffer = 64 << 10
	smallBuffer = 8 << 10
	mostLarge   = 1024
)

// buffers are those of a proxy.
type buffers struct {
	used         atomic.Int64 // large ones
	large, small sync.Pool    // of *[]byte
}

// take returns a buffer; give returns it to the pool.
func (b *buffers) take() *[]byte {
	from, size := &b.large, largeBuffer
	if b.used.Add(1) > mostLarge {
		b.used.Add(-1)
		from, size = &b.small, smallBuffer
	}
	if p, ok := from.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, size)
	return &p
}

func (b *buffers) give(p *[]byte) {
	if len(*p) == largeBuffer {
		b.used.Add(-1)
		b.large.Put(p)
		return
	}
	b.small.Put(p)
}
