package forward

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"wayleave.dev/model"
)

// Bounds of one upstream server.
const (
	// upstreamPatience is the time for one try: slow servers need 2 s, and clients wait 5 s in total.
	upstreamPatience = 3 * time.Second
	// dialPatience is the time to connect by TCP, which may be closed.
	dialPatience = time.Second
	// mostReplies are read while waiting for the right one.
	mostReplies = 1 << 16
	// downAfter consecutive failures mark a server as down: others are preferred.
	downAfter = 2
	// probeEvery is how often a server that is down is probed.
	probeEvery = 500 * time.Millisecond
	// idleConns are kept to a TLS server, each for idleFor.
	idleConns = 16
	idleFor   = 8 * time.Second
)

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// remote is an upstream server with its health. Safe for concurrent use.
type remote struct {
	model.Nameserver
	dial  dialer
	roots *x509.CertPool
	ctx   context.Context // ends when the server is no longer in the settings
	end   context.CancelFunc

	fails   atomic.Int32
	probing atomic.Bool
	idle    chan idleConn
	session tls.ClientSessionCache

	// abilities is what is known about the server.
	abilities
	now func() time.Time
	// plain means that the settings require names in lower case.
	plain  atomic.Bool
	trying atomic.Bool // one zone is tested at a time
	// tryingTCP means that a query by TCP is in progress that shows whether the server lacks TCP.
	tryingTCP atomic.Bool
	tried     map[string]time.Time // by zone; used by the testing goroutine

	// Counters for metrics.
	asked, failed, probes atomic.Uint64
}

type idleConn struct {
	net.Conn
	since time.Time
}

func newRemote(n model.Nameserver, dial dialer, roots *x509.CertPool) *remote {
	ctx, end := context.WithCancel(context.Background())
	return &remote{Nameserver: n, dial: dial, roots: roots, ctx: ctx, end: end, now: time.Now,
		tried: map[string]time.Time{},
		idle:  make(chan idleConn, idleConns), session: tls.NewLRUClientSessionCache(4)}
}

// close ends the probes and the idle connections.
func (u *remote) close() {
	u.end()
	for {
		select {
		case c := <-u.idle:
			c.Close()
		default:
			return
		}
	}
}

func (u *remote) down() bool { return u.fails.Load() >= downAfter }

// ask makes one try, and updates the server's health. later is the number of earlier unanswered tries for the query.
// With errLame there is a reply, too.
func (u *remote) ask(ctx context.Context, q *dns.Msg, later int) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamPatience)
	defer cancel()
	u.asked.Add(1)
	got, err := u.exchange(ctx, q, later)
	if err != nil {
		u.failed.Add(1)
		u.fails.Add(1)
		u.probe()
		return nil, err
	}
	u.fails.Store(0)
	switch got.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		if err := chain(got); err != nil {
			return nil, err
		}
		if isReferral(got) {
			return got, errLame
		}
		return got, nil
	}
	u.failed.Add(1)
	return nil, &rcodeError{got.Rcode}
}

// errLame means that the server referred to other servers instead of answering.
var errLame = errors.New("it refers to other servers")

func isReferral(m *dns.Msg) bool {
	ns := false
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return false
		}
		ns = ns || rr.Header().Rrtype == dns.TypeNS
	}
	return ns && m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 && !m.Authoritative && !m.Truncated
}

// rcodeError is the response code of a server that is alive but refuses or fails.
type rcodeError struct{ code int }

func (e *rcodeError) Error() string { return "it answered " + dns.RcodeToString[e.code] }

// probe probes a failing server until it answers.
func (u *remote) probe() {
	if !u.probing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer u.probing.Store(false)
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for later := 0; ; later++ {
			select {
			case <-u.ctx.Done():
				return
			case <-tick.C:
			}
			ctx, cancel := context.WithTimeout(u.ctx, upstreamPatience)
			u.probes.Add(1)
			_, err := u.exchange(ctx, new(dns.Msg).SetQuestion(".", dns.TypeNS), later%2)
			cancel()
			if err == nil { // any answer shows that it is alive
				u.fails.Store(0)
				return
			}
		}
	}()
}

// mix chooses the case of each letter at random: 25 letters are 25 more bits that a forged answer must guess. At least
// one letter is a capital, if there are any.
func mix(name string) string {
	b := []byte(strings.ToLower(name))
	bits := rand.Uint64()
	var letters []int
	capital := false
	for i, c := range b {
		if c < 'a' || c > 'z' {
			continue
		}
		letters = append(letters, i)
		if bits>>(i%64)&1 == 1 {
			b[i] -= 'a' - 'A'
			capital = true
		}
	}
	if len(letters) > 0 && !capital {
		b[letters[rand.IntN(len(letters))]] -= 'a' - 'A'
	}
	return string(b)
}

// unmix restores the letter case in an answer, which repeats the question's bytes in every name with the same suffix.
func unmix(m *dns.Msg, mixed, plain string) {
	if mixed == plain {
		return
	}
	restore := func(name *string) {
		n := 0 // bytes in common at the end, whole labels only
		for i := 1; i <= min(len(*name), len(mixed)) && (*name)[len(*name)-i] == mixed[len(mixed)-i]; i++ {
			if i == len(*name) || (*name)[len(*name)-i-1] == '.' {
				n = i
			}
		}
		*name = (*name)[:len(*name)-n] + plain[len(plain)-n:]
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			restore(&rr.Header().Name)
			switch rr := rr.(type) {
			case *dns.CNAME:
				restore(&rr.Target)
			case *dns.DNAME:
				restore(&rr.Target)
			case *dns.NS:
				restore(&rr.Ns)
			case *dns.MX:
				restore(&rr.Mx)
			case *dns.SRV:
				restore(&rr.Target)
			case *dns.SOA:
				restore(&rr.Ns)
				restore(&rr.Mbox)
			}
		}
	}
}

// over uses a new connection. The kernel chooses its port at random, and accepts datagrams only from the server's
// address.
func (u *remote) over(ctx context.Context, network string, ask *dns.Msg) (*dns.Msg, error) {
	if network == "tls" {
		return u.overTLS(ctx, ask)
	}
	limit, cancel := context.WithTimeout(ctx, dialPatience)
	conn, err := u.dial(limit, network, u.Addr.String())
	cancel()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConnect, err)
	}
	defer conn.Close()
	return converse(ctx, conn, ask, network == "udp")
}

// overTLS uses an idle connection if there is one. That the server has closed it meanwhile is not a failure.
func (u *remote) overTLS(ctx context.Context, ask *dns.Msg) (*dns.Msg, error) {
	for {
		conn, kept := u.kept()
		if !kept {
			raw, err := u.dial(ctx, "tcp", u.Addr.String())
			if err != nil {
				return nil, err
			}
			name := u.ServerName
			if name == "" {
				name = u.Addr.Addr().String()
			}
			secure := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: u.roots, MinVersion: tls.VersionTLS12,
				ClientSessionCache: u.session})
			if err := secure.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, fmt.Errorf("TLS: %w", err)
			}
			conn = secure
		}
		got, err := converse(ctx, conn, ask, false)
		if err != nil {
			conn.Close()
			if kept && ctx.Err() == nil {
				continue
			}
			return nil, err
		}
		u.keep(conn)
		return got, nil
	}
}

func (u *remote) kept() (net.Conn, bool) {
	for {
		select {
		case c := <-u.idle:
			if time.Since(c.since) < idleFor {
				return c.Conn, true
			}
			c.Close()
		default:
			return nil, false
		}
	}
}

func (u *remote) keep(c net.Conn) {
	if u.ctx.Err() == nil {
		select {
		case u.idle <- idleConn{c, time.Now()}:
			return
		default:
		}
	}
	c.Close()
}

var (
	// errLetters means a correct answer except for the letter case.
	errLetters = errors.New("it does not keep the letters of names")
	// errID means an answer to another query, or a forged one.
	errID = errors.New("an answer with another id")
	// errConnect means that no connection was opened.
	errConnect = errors.New("it cannot be reached")
	// errMalformed means an answer to the question that cannot be parsed.
	errMalformed = errors.New("its answer is malformed")
)

// converse sends a query and waits for its answer. By UDP, other datagrams are ignored, since anybody can send them.
// With errLetters and errMalformed there is a reply, too.
func converse(ctx context.Context, conn net.Conn, ask *dns.Msg, datagrams bool) (*dns.Msg, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	wire, err := ask.Pack()
	if err != nil {
		return nil, err
	}
	if !datagrams {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := conn.Write(wire); err != nil {
		return nil, fmt.Errorf("asking: %w", err)
	}
	buf := make([]byte, 4096)
	var odd error
	for range mostReplies {
		m, err := receive(conn, buf, datagrams)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("no answer: %w", err), odd)
		}
		got := new(dns.Msg)
		broken := got.Unpack(m)
		odd = answersTo(got, ask)
		switch {
		case broken != nil && (odd == nil || errors.Is(odd, errLetters)):
			return got, fmt.Errorf("%w: %w", errMalformed, broken)
		case broken != nil:
			odd = broken
		case odd == nil || isBareError(got, ask):
			return got, nil
		case errors.Is(odd, errLetters):
			return got, odd
		}
		if !datagrams && !errors.Is(odd, errID) {
			return nil, odd
		}
	}
	return nil, odd
}

// isBareError reports whether a message is an error code without the question, as some servers reply to unknown forms.
func isBareError(got, ask *dns.Msg) bool {
	return got.Id == ask.Id && got.Response && len(got.Question) == 0 && rank(got) == rankFailure
}

func receive(conn net.Conn, buf []byte, datagrams bool) ([]byte, error) {
	if datagrams {
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	if _, err := io.ReadFull(conn, buf[:2]); err != nil {
		return nil, err
	}
	// The announced length is not allocated before the bytes arrive.
	n := int(binary.BigEndian.Uint16(buf))
	m, err := io.ReadAll(io.LimitReader(conn, int64(n)))
	if err == nil && len(m) < n {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// answersTo returns why a message does not answer a question.
func answersTo(got, ask *dns.Msg) error {
	switch {
	case got.Id != ask.Id:
		return errID
	case !got.Response:
		return errors.New("not an answer")
	case len(got.Question) != 1 || got.Question[0].Qtype != ask.Question[0].Qtype ||
		got.Question[0].Qclass != ask.Question[0].Qclass ||
		!strings.EqualFold(got.Question[0].Name, ask.Question[0].Name):
		return errors.New("it answered another question")
	case got.Question[0].Name != ask.Question[0].Name:
		return errLetters
	}
	return nil
}

// chain keeps the records of an answer that belong to the question: those of its name, and of the names that CNAMEs
// lead to. A loop of CNAMEs is an error.
func chain(m *dns.Msg) error {
	next := aliases(m)
	name := strings.ToLower(m.Question[0].Name)
	in := map[string]bool{}
	for ok := true; ok; name, ok = next[name] {
		if in[name] {
			return fmt.Errorf("its CNAMEs form a loop at %s", name)
		}
		in[name] = true
	}
	var keep []dns.RR
	for _, rr := range m.Answer {
		owner := strings.ToLower(rr.Header().Name)
		_, dname := rr.(*dns.DNAME)
		sig, _ := rr.(*dns.RRSIG)
		if in[owner] || dname || sig != nil && sig.TypeCovered == dns.TypeDNAME {
			keep = append(keep, rr)
		}
	}
	m.Answer = keep
	return nil
}

func aliases(m *dns.Msg) map[string]string {
	next := map[string]string{}
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok {
			next[strings.ToLower(c.Hdr.Name)] = strings.ToLower(c.Target)
		}
	}
	return next
}

// dangling returns the name at which an answer's CNAMEs end, if the answer neither has its records nor denies them. The
// CNAMEs must not form a loop.
func dangling(m *dns.Msg) (string, bool) {
	qtype := m.Question[0].Qtype
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 || qtype == dns.TypeCNAME || qtype == dns.TypeANY {
		return "", false
	}
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return "", false
		}
	}
	for _, rr := range m.Answer {
		if rr.Header().Rrtype == qtype {
			return "", false
		}
	}
	next, name, found := aliases(m), strings.ToLower(m.Question[0].Name), false
	for target, ok := next[name]; ok; target, ok = next[name] {
		name, found = target, true
	}
	return name, found
}
