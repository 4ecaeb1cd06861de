package server

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wayleave.dev/dns/wire"
	"wayleave.dev/dns/zone"
)

// Sizes of the loop.
const (
	// batch is the maximum number of datagrams per system call.
	batch = 32
	// maxQuery is the longest query that is read; longer ones are invalid.
	maxQuery = 2048
	// maxReaders is the number of loops that read one socket: while one waits for queries, others answer theirs.
	maxReaders = 4
	// maxWorkers bounds the queries in the slow path, so that a dead upstream cannot exhaust the memory; above it
	// queries are answered SERVFAIL. maxWorkersEach bounds those of one source.
	maxWorkers     = 4096
	maxWorkersEach = 512
)

// udpSocket answers the queries of one socket.
type udpSocket struct {
	server  *Server
	conn    *net.UDPConn
	raw     syscall.RawConn
	readers []*reader
	slow    sync.WaitGroup
	done    chan struct{}
}

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// reader is one loop with its memory, which is reused for each batch.
type reader struct {
	u      *udpSocket
	tally  *tally
	random *rand.PCG
	q      wire.Question

	in   [batch][maxQuery]byte
	out  [batch][wire.MaxUDP]byte
	from [batch]unix.RawSockaddrInet6 // of either family

	inVec, outVec [batch]unix.Iovec
	inMsg, outMsg [batch]mmsghdr
	got, ready    int // datagrams read, replies to send
	err           syscall.Errno
	receive, send func(fd uintptr) bool

	// turns counts the iterations of the loop; busy means that it is not waiting for queries. The watchdog reads both.
	turns atomic.Uint64
	busy  atomic.Bool
}

func newUDPSocket(s *Server, conn *net.UDPConn) (*udpSocket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	u := &udpSocket{server: s, conn: conn, raw: raw, done: make(chan struct{})}
	for range min(runtime.GOMAXPROCS(0), maxReaders) {
		u.readers = append(u.readers, newReader(u))
	}
	return u, nil
}

func newReader(u *udpSocket) *reader {
	r := &reader{u: u, tally: u.server.metrics.tally("udp"), random: rand.NewPCG(rand.Uint64(), rand.Uint64())}
	for i := range batch {
		r.inVec[i].Base = &r.in[i][0]
		r.inVec[i].SetLen(maxQuery)
		r.inMsg[i].hdr.Iov = &r.inVec[i]
		r.inMsg[i].hdr.SetIovlen(1)
		r.inMsg[i].hdr.Name = (*byte)(unsafe.Pointer(&r.from[i]))
		r.outVec[i].Base = &r.out[i][0]
		r.outMsg[i].hdr.Iov = &r.outVec[i]
		r.outMsg[i].hdr.SetIovlen(1)
	}
	r.receive, r.send = r.receiveBatch, r.sendBatch
	return r
}

// serve runs the loops until the socket is stopped.
func (u *udpSocket) serve() error {
	defer close(u.done)
	errs := make([]error, len(u.readers))
	var wg sync.WaitGroup
	for i, r := range u.readers {
		wg.Go(func() {
			if errs[i] = r.loop(); errs[i] != nil {
				u.conn.Close() // otherwise queries would wait in a socket without a reader
			}
		})
	}
	wg.Wait()
	for _, r := range u.readers {
		u.server.metrics.retire(r.tally)
	}
	return errors.Join(errs...)
}

// stop answers the queries that have arrived, and then closes the socket.
func (u *udpSocket) stop(ctx context.Context) error {
	err := drain(u.conn)
	err = errors.Join(err, u.conn.SetReadDeadline(time.Unix(1, 0)))
	idle := make(chan struct{})
	go func() {
		<-u.done
		u.slow.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	return errors.Join(err, u.conn.Close())
}

// loop reads, answers and sends a batch at a time.
func (r *reader) loop() error {
	for failed := 0; ; {
		r.busy.Store(false)
		r.turns.Add(1)
		for i := range batch {
			r.inMsg[i].hdr.Namelen = unix.SizeofSockaddrInet6
		}
		err := r.u.raw.Read(r.receive)
		r.busy.Store(true)
		switch {
		case err != nil: // stopped
			r.busy.Store(false)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ETIMEDOUT) ||
				errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return err
		case r.err != 0: // an ICMP error for an earlier reply
			if failed++; failed > 100 {
				return r.err
			}
			continue
		}
		failed = 0
		start := time.Now()
		r.answer()
		if r.ready > 0 {
			if err := r.u.raw.Write(r.send); err != nil {
				return err
			}
		}
		r.count(time.Since(start))
	}
}

func (r *reader) receiveBatch(fd uintptr) bool {
	for {
		n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.inMsg[0])), batch,
			unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case unix.EAGAIN:
			return false
		case unix.EINTR:
			continue
		}
		r.got, r.err = int(n), e
		return true
	}
}

// sendBatch sends the replies. If the kernel refuses one, only that is lost.
func (r *reader) sendBatch(fd uintptr) bool {
	for at := 0; at < r.ready; {
		n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&r.outMsg[at])), uintptr(r.ready-at),
			unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			at += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			copy(r.outMsg[:], r.outMsg[at:r.ready]) // the rest, once there is room
			r.ready -= at
			return false
		default:
			at++
		}
	}
	return true
}

// answer makes the replies to a batch.
func (r *reader) answer() {
	s := r.u.server
	set := s.compiled.Load()
	zone := s.resolver.Zone
	r.ready = 0
	r.tally.mu.Lock()
	defer r.tally.mu.Unlock()
	zone.RLock()
	defer zone.RUnlock()
	for i := range r.got {
		client := addrOf(&r.from[i])
		if !s.admits(set, client) {
			r.tally.refused++
			continue
		}
		in := r.in[i][:min(int(r.inMsg[i].len), maxQuery)]
		if out := r.hot(zone, set, client, i, in); out != nil {
			r.reply(i, out)
			continue
		}
		r.later(i, in)
	}
}

// hot returns the reply that the hot path makes, or nil.
func (r *reader) hot(zone *zone.Zone, set *compiled, client netip.Addr, i int, in []byte) []byte {
	if !r.q.Read(in) {
		return nil
	}
	s := r.u.server
	out, missing, ok := zone.Answer(r.out[i][:0], in, &r.q, set.domains, uint32(r.random.Uint64()))
	if !ok && s.outside != nil {
		out, ok = s.outside(r.out[i][:0], in, wire.MaxUDP)
	}
	if !ok || (s.caller != nil && s.caller(client, &r.q, set.domains, missing)) {
		return nil
	}
	r.tally.hot++
	qtype := r.q.Qtype
	if qtype >= countedTypes {
		qtype = 0
	}
	r.tally.types[qtype]++
	r.tally.codes[out[3]&0xf]++
	return out
}

func (r *reader) reply(i int, out []byte) {
	m := &r.outMsg[r.ready]
	r.outVec[i].Base = &out[0]
	r.outVec[i].SetLen(len(out))
	m.hdr.Iov = &r.outVec[i]
	m.hdr.Name, m.hdr.Namelen = r.inMsg[i].hdr.Name, r.inMsg[i].hdr.Namelen
	r.ready++
}

func (r *reader) count(took time.Duration) {
	r.tally.mu.Lock()
	defer r.tally.mu.Unlock()
	r.tally.took(took, uint64(r.ready))
}

// later gives a query to the slow path.
func (r *reader) later(i int, in []byte) {
	s := r.u.server
	if len(in) < wire.HeaderLen {
		return
	}
	source := s.sourceOf(addrOf(&r.from[i]))
	if !s.work.take(source) {
		r.tally.full++
		r.reply(i, refusal(r.out[i][:0], in, dns.RcodeServerFailure))
		return
	}
	raw, to := append([]byte(nil), in...), portOf(&r.from[i])
	r.u.slow.Go(func() {
		defer s.work.done(source)
		out := s.answerSlowly(raw, to.Addr().WithZone(""), overUDP)
		if out == nil {
			return
		}
		if _, err := r.u.conn.WriteToUDPAddrPort(out, to); err != nil {
			s.log.Debug("cannot answer", "client", to, "err", err)
		}
	})
}

// refusal is a reply with only a response code.
func refusal(out, in []byte, rcode byte) []byte {
	out = append(out, in[:wire.HeaderLen]...)
	out[2], out[3] = in[2]&0x79|0x80, rcode
	clear(out[4:wire.HeaderLen])
	return out
}

// answerSlowly answers one query with the library; nil for no answer.
func (s *Server) answerSlowly(raw []byte, client netip.Addr, by transport) []byte {
	head := dns.Header{Id: binary.BigEndian.Uint16(raw), Bits: binary.BigEndian.Uint16(raw[2:]),
		Qdcount: binary.BigEndian.Uint16(raw[4:]),
		Ancount: binary.BigEndian.Uint16(raw[6:]), Nscount: binary.BigEndian.Uint16(raw[8:]),
		Arcount: binary.BigEndian.Uint16(raw[10:])}
	switch dns.DefaultMsgAcceptFunc(head) {
	case dns.MsgIgnore: // a reply: answering it could loop forever
		return nil
	case dns.MsgRejectNotImplemented:
		return refusal(nil, raw, dns.RcodeNotImplemented)
	case dns.MsgReject:
		return refusal(nil, raw, dns.RcodeFormatError)
	}
	q := new(dns.Msg)
	if err := q.Unpack(raw); err != nil {
		return refusal(nil, raw, dns.RcodeFormatError)
	}
	m := s.reply(q, client, by)
	m.Truncate(by.size(q))
	m.Compress = true
	out, err := m.Pack()
	if err != nil {
		s.log.Warn("cannot pack a reply", "question", q.Question, "err", err)
		return refusal(nil, raw, dns.RcodeServerFailure)
	}
	return out
}

// addrOf returns a client's address, without zone.
func addrOf(sa *unix.RawSockaddrInet6) netip.Addr {
	if sa.Family == unix.AF_INET {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr)
	}
	return netip.AddrFrom16(sa.Addr).Unmap()
}

// portOf returns the port of a client's answer.
func portOf(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // at the same place in both families
	a := addrOf(sa)
	if a.Is6() && sa.Scope_id != 0 {
		a = a.WithZone(strconv.Itoa(int(sa.Scope_id)))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port[:]))
}

// open makes a service of a passed socket.
func (s *Server) open(l net.Listener, p net.PacketConn) (listening, error) {
	if l != nil {
		c, ok := l.(*net.TCPListener)
		if !ok {
			return nil, errors.New("not a TCP socket")
		}
		return newTCPSocket(s, c)
	}
	c, ok := p.(*net.UDPConn)
	if !ok {
		return nil, errors.New("not a UDP socket")
	}
	return newUDPSocket(s, c)
}
