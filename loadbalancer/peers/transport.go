package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"

	"wayleave.dev/internal/admission"
)

// Bounds of the heartbeat port. They apply before a message is authenticated, and to messages of a node whose key an
// attacker knows.
const (
	// maxStreams and streamsPerNode bound connections. A node needs two at once: one that it opens to send its state,
	// and one of a probe.
	maxStreams     = 64
	streamsPerNode = 4
	// maxPacket bounds a datagram: memberlist makes them of 1,400 bytes before encryption.
	maxPacket = 2048
	// baseMessage and messagePerNode bound a message on a connection: the state of each node is less than 1 KiB.
	baseMessage    = 64 << 10
	messagePerNode = 1 << 10
	// heldMessages bounds the memory of all connections together, in messages of the largest size.
	heldMessages = 16
	// receiveBuffer is the size of the kernel's buffer while the process waits for a CPU.
	receiveBuffer = 2 << 20
)

var (
	errStranger = errors.New("not an address of another node")
	errHeld     = errors.New("heartbeat connections hold too many bytes")
)

// transport carries memberlist's messages between the addresses of nodes, and nothing else. Datagrams of other
// sources are dropped by the kernel (a socket filter) and again here. Connections of other sources are reset before a
// byte is read (the kernel does not let a process without capabilities set a filter for them). Each message is
// authenticated and checked before memberlist gets it.
type transport struct {
	at    netip.AddrPort
	check checker

	nodes   atomic.Pointer[map[netip.Addr]bool] // of the other nodes
	tcp     *admission.Listener
	udp     *net.UDPConn
	control syscall.RawConn // of udp, for its filter

	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
	running sync.WaitGroup

	held    atomic.Int64  // bytes that connections hold
	refused atomic.Uint64 // messages and connections
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens both sockets. Nothing is accepted before setNodes.
func listen(at netip.AddrPort, check checker) (*transport, error) {
	t := &transport{at: at, check: check, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
		done: make(chan struct{})}
	t.nodes.Store(&map[netip.Addr]bool{})
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	t.tcp = admission.New(l, admission.Limits{Total: maxStreams, PerSource: streamsPerNode, Allowed: t.isNode})
	// The filter is set before the socket is bound, so there is no moment without it.
	lc.Control = func(_, _ string, c syscall.RawConn) error { return setFilter(c, nil) }
	p, err := lc.ListenPacket(context.Background(), "udp", at.String())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	t.udp = p.(*net.UDPConn)
	// The kernel may allow less.
	_ = t.udp.SetReadBuffer(receiveBuffer)
	if t.control, err = t.udp.SyscallConn(); err != nil {
		return nil, errors.Join(err, l.Close(), p.Close())
	}
	t.running.Go(t.accept)
	t.running.Go(t.receive)
	return t, nil
}

// setNodes replaces the addresses of the other nodes.
func (t *transport) setNodes(addrs map[netip.Addr]bool) error {
	old := t.nodes.Swap(&addrs)
	if len(*old) == len(addrs) && containsAll(*old, addrs) {
		return nil
	}
	return setFilter(t.control, addrs)
}

func containsAll(in, all map[netip.Addr]bool) bool {
	for a := range all {
		if !in[a] {
			return false
		}
	}
	return true
}

func (t *transport) isNode(a netip.Addr) bool { return (*t.nodes.Load())[a.WithZone("")] }

// maxMessage bounds one message on a connection, in bytes.
func (t *transport) maxMessage() int { return baseMessage + messagePerNode*len(*t.nodes.Load()) }

// counters returns the numbers of refused messages and connections.
func (t *transport) counters() uint64 {
	c := t.tcp.Counters()
	return t.refused.Load() + c.Refused + c.Displaced
}

func (t *transport) accept() {
	for {
		c, err := t.tcp.Accept()
		if err != nil {
			return
		}
		t.running.Go(func() { t.greet(c) })
	}
}

// greet reads the one message of a connection, within streamTimeout, and passes it on.
func (t *transport) greet(c net.Conn) {
	h := &held{Conn: c, t: t}
	err := c.SetDeadline(time.Now().Add(streamTimeout))
	if err == nil {
		err = h.read(true)
	}
	if err != nil {
		t.refused.Add(1)
		_ = h.Close()
		return
	}
	select {
	case t.streams <- h:
	case <-t.done:
		_ = h.Close()
	}
}

// receive passes on datagrams.
func (t *transport) receive() {
	buf := make([]byte, maxPacket+1)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		now := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // avoids a tight loop
			continue
		}
		addr := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !t.isNode(addr.Addr()) || n > maxPacket || t.check.packet(buf[:n]) != nil {
			t.refused.Add(1)
			continue
		}
		p := &memberlist.Packet{Buf: bytes.Clone(buf[:n]), From: net.UDPAddrFromAddrPort(addr), Timestamp: now}
		select {
		case t.packets <- p:
		case <-t.done:
			return
		}
	}
}

// peer returns the node that has an address. Messages can name any address: nothing is sent to addresses that no node
// has.
func (t *transport) peer(addr string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if !t.isNode(a.Addr()) || a.Port() != t.at.Port() {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", a, errStranger)
	}
	return a, nil
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.at.Addr().AsSlice(), int(t.at.Port()), nil
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := t.peer(addr)
	if err == nil {
		_, err = t.udp.WriteToUDPAddrPort(b, to)
	}
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// DialTimeout implements memberlist.Transport. It connects from this node's address, by which the others know it.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, err := t.peer(addr)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: timeout, LocalAddr: &net.TCPAddr{IP: t.at.Addr().AsSlice(), Zone: t.at.Addr().Zone()}}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	return &held{Conn: c, t: t}, nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport. It waits for everything that was started, at most streamTimeout.
func (t *transport) Shutdown() error {
	var err error
	t.once.Do(func() {
		close(t.done)
		err = errors.Join(t.tcp.Close(), t.udp.Close())
	})
	t.running.Wait()
	return err
}

// held is a connection whose one message is read, bounded and authenticated before it is passed on; for a dialled
// connection, at the first Read. Reads belong to one goroutine.
type held struct {
	net.Conn
	t       *transport
	message *bytes.Reader
	size    atomic.Int64
	once    sync.Once
	err     error
}

// Read returns the message, and nothing more.
func (h *held) Read(b []byte) (int, error) {
	if h.message == nil {
		if err := h.read(false); err != nil {
			h.t.refused.Add(1)
			return 0, err
		}
	}
	return h.message.Read(b)
}

// Close releases the memory of the message.
func (h *held) Close() error {
	h.once.Do(func() {
		h.t.held.Add(-h.size.Swap(0))
		h.err = h.Conn.Close()
	})
	return h.err
}

// read reads the message from the connection; an accepted one begins with the label.
func (h *held) read(accepted bool) error {
	head := make([]byte, streamHead, streamHead+len(labelHead))
	if accepted {
		head = head[:streamHead+len(labelHead)]
	}
	if _, err := io.ReadFull(h.Conn, head); err != nil {
		return err
	}
	size, err := h.t.check.streamSize(head, accepted, h.t.maxMessage())
	if err != nil {
		return err
	}
	// Bytes are counted when they are announced, and allocated as they arrive.
	h.size.Store(int64(size))
	if h.t.held.Add(int64(size)) > int64(heldMessages*h.t.maxMessage()) {
		return errHeld
	}
	whole := bytes.NewBuffer(head)
	if _, err := io.CopyN(whole, h.Conn, int64(size)); err != nil {
		return err
	}
	if err := h.t.check.stream(whole.Bytes(), accepted, len(*h.t.nodes.Load())); err != nil {
		return err
	}
	h.message = bytes.NewReader(whole.Bytes())
	return nil
}
